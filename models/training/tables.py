"""The words of the corpus: characters, things, names, places, countries, colours, phrases.

Every list was written for this project. The grammars that put the words together are in `stories.py`, `smalltalk.py`
and `tasks.py`.
"""

from __future__ import annotations

CHARACTERS = """
fox bear rabbit owl mouse cat dog horse cow sheep goat pig duck hen goose frog turtle hedgehog squirrel badger otter
beaver wolf deer lion tiger elephant giraffe monkey penguin seal whale dolphin crab snail bee ant spider butterfly
crow swan parrot camel donkey llama panda koala kangaroo zebra crocodile dragon unicorn giant witch wizard knight king
queen prince princess pirate robot ghost fairy farmer baker sailor painter teacher doctor gardener shepherd miller
fisherman clockmaker tailor astronaut dinosaur mermaid troll elf lizard bat raven puppy kitten girl boy grandmother
grandfather snowman scarecrow magician detective
""".split()

THINGS = """
lantern kite bell boat drum key map ladder basket blanket candle clock coin crown cup feather flute garden hammer hat
kettle letter lamp mirror necklace oven pebble pencil piano pillow pot ring rope sail scarf shell shoe spoon star stone
sword table teapot telescope tent tower train treehouse trumpet umbrella violin wagon well whistle window apple pear
cake pie pumpkin carrot mushroom flower rose seed tree acorn nut cloud moon rainbow snowflake river mountain island
bridge castle cave door fence mill lighthouse balloon ball book box bicycle wheel button cart chair carpet compass
nest bottle bag broom bucket computer rocket guitar spaceship cookie sandwich
""".split()

ADJECTIVES = "small brave old shy clever kind lonely curious tiny young happy sleepy gentle quiet proud hungry".split()

HERO_NAMES = """
Pip Mina Tobi Lulu Otto Nora Finn Ella Bruno Zara Hugo Ivy Milo Tess Rufus Poppy Oscar Daisy Felix Luna Juno Theo Wren
Basil
""".split()

STORY_PLACES = """
forest|village|valley|meadow|harbour|desert|town|garden|city|park|castle|woods
""".strip().split("|")

NAMES = """
Anna Tom Maria John Lucy Peter Sarah David Emma Paul Julia Mark Laura James Sophie Daniel Clara Simon Alice Robert Helen
Martin Eva Thomas Nina Andrew Kate Michael Rosa Henry Ines Victor Lena George Amina Oliver Yuki Samuel Fatima Leo Mei
Carlos Ingrid Ahmed Olga Pablo Greta Ravi Hanna Luis Marta Ivan Chloe Kenji Elena Omar Ruth Stefan Leila Jack Priya Adam
Sofia Ben Diana Erik Grace Hassan Irene Jonas Karin Liam Monica Noah Paula Quentin Rachel Sven Tara Umar Vera William
Xenia Yusuf Zoe Alex Bella Chris Dora Edith Frank Gloria Harry Isabel Joseph Kevin Linda Mary Nick Susan Tim Walter
""".split()

PLACES = (
    """
Paris|London|Berlin|Madrid|Rome|Vienna|Oslo|Lisbon|Athens|Dublin|Prague|Warsaw|Budapest|Stockholm|Helsinki|Copenhagen|
Brussels|Geneva|Zurich|Munich|Hamburg|Lyon|Nice|Barcelona|Seville|Milan|Naples|Venice|Florence|Krakow|Moscow|Kyiv|
Istanbul|Cairo|Nairobi|Lagos|Tokyo|Kyoto|Beijing|Shanghai|Delhi|Mumbai|Bangkok|Hanoi|Seoul|Sydney|Melbourne|Toronto|
Montreal|Boston|Chicago|New York|San Francisco|Seattle|Mexico City|Lima|Bogota|Buenos Aires|Santiago|Havana|France|
Germany|Spain|Italy|Norway|Sweden|Poland|Greece|Portugal|Ireland|Scotland|Egypt|Kenya|India|China|Japan|Canada|Brazil|
Peru|Chile|Iceland|Turkey|Morocco|Vietnam|Texas|California|Bristol|Oxford|Cambridge|Edinburgh|Glasgow|Manchester
""".replace("\n", "")
    .strip()
    .split("|")
)

CAPITALS = dict(
    pair.split(":")
    for pair in """
France:Paris|Germany:Berlin|Spain:Madrid|Italy:Rome|Austria:Vienna|Norway:Oslo|Portugal:Lisbon|Greece:Athens|
Ireland:Dublin|Poland:Warsaw|Hungary:Budapest|Sweden:Stockholm|Finland:Helsinki|Denmark:Copenhagen|Belgium:Brussels|
Switzerland:Bern|England:London|Scotland:Edinburgh|Russia:Moscow|Ukraine:Kyiv|Turkey:Ankara|Egypt:Cairo|Kenya:Nairobi|
Japan:Tokyo|China:Beijing|India:New Delhi|Thailand:Bangkok|Vietnam:Hanoi|South Korea:Seoul|Australia:Canberra|
Canada:Ottawa|Mexico:Mexico City|Peru:Lima|Colombia:Bogota|Argentina:Buenos Aires|Chile:Santiago|Cuba:Havana|
Brazil:Brasilia|Iceland:Reykjavik|Romania:Bucharest|Bulgaria:Sofia|Serbia:Belgrade|Croatia:Zagreb|Morocco:Rabat|
Algeria:Algiers|Tunisia:Tunis|Ethiopia:Addis Ababa|Ghana:Accra|Senegal:Dakar|Nepal:Kathmandu|Pakistan:Islamabad|
Iran:Tehran|Iraq:Baghdad|Israel:Jerusalem|Jordan:Amman|Lebanon:Beirut|Mongolia:Ulaanbaatar|Indonesia:Jakarta|
Malaysia:Kuala Lumpur|the Philippines:Manila|New Zealand:Wellington|the United States:Washington|
the United Kingdom:London|the Netherlands:Amsterdam|the Czech Republic:Prague|Estonia:Tallinn|Latvia:Riga|
Lithuania:Vilnius|Slovenia:Ljubljana|Uruguay:Montevideo|Venezuela:Caracas|Ecuador:Quito
""".replace("\n", "").split("|")
)

COLOURS = dict(
    pair.split(":")
    for pair in """
a banana:yellow|a lemon:yellow|the sun:yellow|a sunflower:yellow|a canary:yellow|a tomato:red|a strawberry:red|
a cherry:red|blood:red|a ladybird:red|a fire engine:red|a rose:red|the sky:blue|the sea:blue|a sapphire:blue|
a blueberry:blue|grass:green|a leaf:green|a frog:green|a cucumber:green|a pea:green|spinach:green|an emerald:green|
broccoli:green|snow:white|milk:white|salt:white|a swan:white|a polar bear:white|flour:white|rice:white|coal:black|
a raven:black|tar:black|the night:black|ink:black|an orange:orange|a carrot:orange|a pumpkin:orange|an apricot:orange|
an aubergine:purple|lavender:purple|a plum:purple|an amethyst:purple|a violet:purple|chocolate:brown|a chestnut:brown|
coffee:brown|a bear:brown|wood:brown|an elephant:grey|a mouse:grey|ash:grey|a rain cloud:grey|a flamingo:pink|
a pig:pink|a piglet:pink|bubble gum:pink|gold:yellow|an apple:red
""".replace("\n", "").split("|")
)

LANGUAGES = ("English", "French", "German", "Spanish", "Chinese")

PHRASES = tuple(
    tuple(row.split("|"))
    for row in """
Hello.|Bonjour.|Hallo.|Hola.|你好。
Goodbye.|Au revoir.|Auf Wiedersehen.|Adiós.|再见。
Good morning.|Bonjour.|Guten Morgen.|Buenos días.|早上好。
Good evening.|Bonsoir.|Guten Abend.|Buenas tardes.|晚上好。
Good night.|Bonne nuit.|Gute Nacht.|Buenas noches.|晚安。
Thank you.|Merci.|Danke.|Gracias.|谢谢。
Thank you very much.|Merci beaucoup.|Vielen Dank.|Muchas gracias.|非常感谢。
Please.|S'il vous plaît.|Bitte.|Por favor.|请。
Yes.|Oui.|Ja.|Sí.|是的。
No.|Non.|Nein.|No.|不。
Excuse me.|Excusez-moi.|Entschuldigung.|Disculpe.|打扰一下。
I am sorry.|Je suis désolé.|Es tut mir leid.|Lo siento.|对不起。
How are you?|Comment allez-vous ?|Wie geht es Ihnen?|¿Cómo está usted?|你好吗?
I am fine.|Je vais bien.|Es geht mir gut.|Estoy bien.|我很好。
What is your name?|Comment vous appelez-vous ?|Wie heißen Sie?|¿Cómo se llama?|你叫什么名字?
Where is the station?|Où est la gare ?|Wo ist der Bahnhof?|¿Dónde está la estación?|车站在哪里?
Where is the toilet?|Où sont les toilettes ?|Wo ist die Toilette?|¿Dónde está el baño?|厕所在哪里?
How much is it?|Combien ça coûte ?|Wie viel kostet das?|¿Cuánto cuesta?|多少钱?
What time is it?|Quelle heure est-il ?|Wie spät ist es?|¿Qué hora es?|几点了?
I do not understand.|Je ne comprends pas.|Ich verstehe nicht.|No entiendo.|我不明白。
I need help.|J'ai besoin d'aide.|Ich brauche Hilfe.|Necesito ayuda.|我需要帮助。
I am hungry.|J'ai faim.|Ich habe Hunger.|Tengo hambre.|我饿了。
I am thirsty.|J'ai soif.|Ich habe Durst.|Tengo sed.|我渴了。
I am tired.|Je suis fatigué.|Ich bin müde.|Estoy cansado.|我累了。
I love you.|Je t'aime.|Ich liebe dich.|Te quiero.|我爱你。
See you tomorrow.|À demain.|Bis morgen.|Hasta mañana.|明天见。
See you soon.|À bientôt.|Bis bald.|Hasta pronto.|回头见。
Welcome.|Bienvenue.|Willkommen.|Bienvenido.|欢迎。
Congratulations.|Félicitations.|Herzlichen Glückwunsch.|Felicidades.|恭喜。
Happy birthday.|Joyeux anniversaire.|Alles Gute zum Geburtstag.|Feliz cumpleaños.|生日快乐。
Good luck.|Bonne chance.|Viel Glück.|Buena suerte.|祝你好运。
Enjoy your meal.|Bon appétit.|Guten Appetit.|Buen provecho.|请慢用。
Have a good trip.|Bon voyage.|Gute Reise.|Buen viaje.|一路顺风。
The bill, please.|L'addition, s'il vous plaît.|Die Rechnung, bitte.|La cuenta, por favor.|请买单。
A coffee, please.|Un café, s'il vous plaît.|Einen Kaffee, bitte.|Un café, por favor.|请来一杯咖啡。
Water.|Eau.|Wasser.|Agua.|水。
Bread.|Pain.|Brot.|Pan.|面包。
Milk.|Lait.|Milch.|Leche.|牛奶。
Tea.|Thé.|Tee.|Té.|茶。
Apple.|Pomme.|Apfel.|Manzana.|苹果。
House.|Maison.|Haus.|Casa.|房子。
Book.|Livre.|Buch.|Libro.|书。
Cat.|Chat.|Katze.|Gato.|猫。
Dog.|Chien.|Hund.|Perro.|狗。
Friend.|Ami.|Freund.|Amigo.|朋友。
Today.|Aujourd'hui.|Heute.|Hoy.|今天。
Tomorrow.|Demain.|Morgen.|Mañana.|明天。
Yesterday.|Hier.|Gestern.|Ayer.|昨天。
Red.|Rouge.|Rot.|Rojo.|红色。
Blue.|Bleu.|Blau.|Azul.|蓝色。
Green.|Vert.|Grün.|Verde.|绿色。
One.|Un.|Eins.|Uno.|一。
Two.|Deux.|Zwei.|Dos.|二。
Three.|Trois.|Drei.|Tres.|三。
Sun.|Soleil.|Sonne.|Sol.|太阳。
Moon.|Lune.|Mond.|Luna.|月亮。
""".strip().splitlines()
)

NUMBER_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
""".split()
