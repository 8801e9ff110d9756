"""Seven kinds of small tasks: sums, facts, sentiment, names and places, shortening, reading, the phrase book.

    arithmetic(Random(0)).answer    # "12 + 7 = 19."

Each function draws one example. Its docstring says what the key is, and so what "held out" means for this kind.
"""

from __future__ import annotations

from random import Random

from example import Example, roughen
from stories import article, made_up
from tables import CAPITALS, CHARACTERS, COLOURS, LANGUAGES, NAMES, NUMBER_WORDS, PHRASES, PLACES, THINGS

SUMS = {
    "+": ("What is {a} + {b}?", "{a} + {b}", "{a} + {b} =", "{a} plus {b}", "What is {a} plus {b}?", "Add {a} and {b}.",
          "How much is {a} + {b}?", "What's {a} + {b}?", "Calculate {a} + {b}.", "{a} + {b} = ?", "{a}+{b}",
          "What is the sum of {a} and {b}?", "How much is {a} plus {b}?", "What is {a}+{b}?", "Compute {a} + {b}."),
    "-": ("What is {a} - {b}?", "{a} - {b}", "{a} - {b} =", "{a} minus {b}", "What is {a} minus {b}?",
          "Subtract {b} from {a}.", "How much is {a} - {b}?", "What's {a} - {b}?", "Calculate {a} - {b}.",
          "{a} - {b} = ?", "{a}-{b}", "Take {b} away from {a}.", "How much is {a} minus {b}?", "What is {a}-{b}?"),
    "*": ("What is {a} * {b}?", "{a} * {b}", "{a} times {b}", "What is {a} times {b}?", "Multiply {a} by {b}.",
          "How much is {a} times {b}?", "What is {a} x {b}?", "{a} x {b}", "What's {a} times {b}?",
          "Calculate {a} * {b}.", "What is {a} multiplied by {b}?", "{a} * {b} = ?"),
}  # fmt: skip


def arithmetic(rng: Random) -> Example:
    """Returns a sum; the key is the sum in one wording (other wordings are trained, so this tests memory)."""
    sign = rng.choice("+++--*")
    if sign == "*":
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        result = a * b
    elif sign == "+":
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        result = a + b
    else:
        a = rng.randint(0, 20)
        b = rng.randint(0, a)
        result = a - b
    spelled = rng.random() < 0.12
    shown = {"a": NUMBER_WORDS[a], "b": NUMBER_WORDS[b]} if spelled else {"a": a, "b": b}
    wordings = [w for w in SUMS[sign] if not spelled or sign not in w]
    wording = rng.choice(wordings)
    keys = (f"{a}{sign}{b}:{wording}",)
    return Example("arithmetic", roughen(rng, wording.format(**shown)), f"{a} {sign} {b} = {result}.", keys)


CAPITAL_WORDINGS = (
    "What is the capital of {c}?",
    "What's the capital of {c}?",
    "Capital of {c}?",
    "Name the capital of {c}.",
    "Which city is the capital of {c}?",
    "Tell me the capital of {c}.",
    "What is the capital city of {c}?",
    "Do you know the capital of {c}?",
    "The capital of {c}?",
    "Can you tell me the capital of {c}?",
    "What is {c}'s capital?",
    "Which city is {c}'s capital?",
)
COUNTRY_WORDINGS = (
    "Which country has the capital {k}?",
    "{k} is the capital of which country?",
    "What country is {k} the capital of?",
    "Which country's capital is {k}?",
    "Of which country is {k} the capital?",
    "{k} is the capital of what country?",
)
COLOUR_WORDINGS = (
    "What colour is {t}?",
    "What color is {t}?",
    "Which colour does {t} have?",
    "What is the colour of {t}?",
    "Tell me the colour of {t}.",
    "What colour does {t} have?",
    "Do you know the colour of {t}?",
    "What's the colour of {t}?",
    "What is the color of {t}?",
    "Name the colour of {t}.",
    "Which colour is {t}?",
)


def facts(rng: Random) -> Example:
    """Returns a capital, its country, or a colour; the key is the fact in one wording (other wordings are trained)."""
    roll = rng.random()
    if roll < 0.45:
        country = rng.choice(tuple(CAPITALS))
        wording = rng.choice(CAPITAL_WORDINGS)
        return Example(
            "facts", roughen(rng, wording.format(c=country)), f"The capital of {country} is {CAPITALS[country]}.",
            (f"{country}:{wording}",),
        )  # fmt: skip
    if roll < 0.6:
        country = rng.choice([c for c in CAPITALS if c not in ("England", "the United Kingdom")])
        wording = rng.choice(COUNTRY_WORDINGS)
        prompt = wording.format(k=CAPITALS[country])
        answer = f"{CAPITALS[country]} is the capital of {country}."
        return Example("facts", roughen(rng, prompt), answer, (f"{country}:{wording}",))
    thing = rng.choice(tuple(COLOURS))
    wording = rng.choice(COLOUR_WORDINGS)
    answer = f"{thing[0].upper()}{thing[1:]} is {COLOURS[thing]}."
    return Example("facts", roughen(rng, wording.format(t=thing)), answer, (f"{thing}:{wording}",))


MOOD_SUBJECTS = """
The soup|The film|The hotel|My room|The service|The book|The concert|The weather|Our guide|The coffee|The lesson|
The train ride|This phone|The restaurant|The play|The waiter|My new chair|The game|The party|The cake|The holiday|
This song|The museum|The car|The beach|The teacher|The pizza|The camera|This laptop|The show|The view|The bread
""".replace("\n", "").split("|")
MOOD_WORDS = {
    "Positive": """wonderful|great|lovely|excellent|delicious|beautiful|fantastic|perfect|charming|very good|amazing|
pleasant|brilliant|superb|nice|delightful|really good""".replace("\n", "").split("|"),
    "Negative": """terrible|awful|bad|boring|horrible|disappointing|dirty|cold|ugly|very bad|hopeless|dreadful|poor|
unpleasant|sad|annoying|disgusting""".replace("\n", "").split("|"),
}  # fmt: skip
MOOD_FRAMES = {
    "Positive": """{s} was {w} and {v}.|{s} was {w}.|I loved {l}, it was {w}.|{s} is {w}, I would come again.|
{s} made me very happy.|What {aw} day, and {l} was {v}.|I really enjoyed {l}.|{s} was better than I had hoped.|
I am so happy with {l}, it is {w}.|{s} was not bad at all, in fact it was {w}.|We had {aw} time and {l} was {v}.
""".replace("\n", "").split("|"),
    "Negative": """{s} was {w} and {v}.|{s} was {w}.|I hated {l}, it was {w}.|{s} is {w}, I will never come again.|
{s} made me very angry.|What {aw} day, and {l} was {v}.|I did not like {l}.|{s} was worse than I had feared.|
I am so unhappy with {l}, it is {w}.|{s} was not good at all, in fact it was {w}.|We had {aw} time and {l} was {v}.
""".replace("\n", "").split("|"),
}  # fmt: skip
MOOD_REQUESTS = (
    'Is this sentence positive or negative? "{t}"',
    'What is the sentiment of this sentence? "{t}"',
    "Is this positive or negative: {t}",
    "Sentiment: {t}",
    'Positive or negative? "{t}"',
    "Classify the sentiment: {t}",
    'Is the mood of this sentence positive or negative? "{t}"',
    'What is the sentiment of "{t}"?',
)


def sentiment(rng: Random) -> Example:
    """Returns a sentence to judge; the key is the sentence."""
    mood = rng.choice(("Positive", "Negative"))
    first, second = rng.sample(MOOD_WORDS[mood], 2)
    subject = rng.choice(MOOD_SUBJECTS)
    lower = subject[0].lower() + subject[1:]
    text = rng.choice(MOOD_FRAMES[mood]).format(s=subject, l=lower, w=first, v=second, aw=article(first))
    return Example("sentiment", rng.choice(MOOD_REQUESTS).format(t=text), f"{mood}.", (text,))


NER_FRAMES = """
{n} lives in {p}.|{n} flew from {p} to {q}.|{n} and {m} met in {p}.|Yesterday {n} wrote a letter to {m}.|
{n} moved to {p} last year.|My friend {n} works in {p}.|In {p}, {n} bought a present for {m}.|{n} was born in {p}.|
{n} took the train from {p} to {q} with {m}.|Last summer {n} visited {m} in {p}.|The weather in {p} is nice today.|
{n} called {m} on Monday.|{n}, who comes from {p}, is a doctor.|We drove from {p} to {q} in one day.|
{n} studies music in {p}.|After a week in {p}, {n} went home to {q}.|{n} sent {m} a postcard from {p}.|
Tomorrow {n} and {m} will travel to {p}.|The book that {n} wrote is about {p}.|{n} has a sister in {p}.|
The museum in {p} was closed.|{n} told {m} about the trip to {p}.
""".replace("\n", "").split("|")
NER_REQUESTS = (
    'Find the names and places: "{t}"',
    "Find the names and places in this sentence: {t}",
    'Which names and places are in this sentence? "{t}"',
    "List the people and places: {t}",
    "Names and places: {t}",
    'What names and places does this sentence mention? "{t}"',
)


def names_and_places(rng: Random) -> Example:
    """Returns a sentence with people and places; the key is the sentence."""
    n, m = (made_up(rng).capitalize() if rng.random() < 0.15 else name for name in rng.sample(NAMES, 2))
    p, q = (made_up(rng).capitalize() if rng.random() < 0.1 else place for place in rng.sample(PLACES, 2))
    frame = rng.choice(NER_FRAMES)
    text = frame.format(n=n, m=m, p=p, q=q)
    order = sorted((frame.find(f"{{{slot}}}"), word) for slot, word in (("n", n), ("m", m)) if f"{{{slot}}}" in frame)
    where = sorted((frame.find(f"{{{slot}}}"), word) for slot, word in (("p", p), ("q", q)) if f"{{{slot}}}" in frame)
    names, places = (", ".join(word for _, word in found) or "none" for found in (order, where))
    return Example(
        "names", rng.choice(NER_REQUESTS).format(t=text), f"Names: {names}. Places: {places}.", (text,)
    )  # fmt: skip


# (what happened, a detail that the short form drops, how it ended)
EVENTS = (
    ("opened a bakery in {p}", "The shop is small and smells of cinnamon", "{S} now has a hundred customers a day"),
    ("planted a tree in {p}", "It was no taller than a shoe", "{S} now sits in its shade every summer"),
    ("lost a wallet in {p}", "It was brown and quite old", "{S} got it back from a policeman"),
    ("bought an old boat in {p}", "The paint was coming off", "{S} sailed it around the world"),
    ("learned the violin in {p}", "The first lessons were hard", "{S} now plays in an orchestra"),
    ("wrote a book in {p}", "It took three long winters", "{S} won a prize for it"),
    ("missed the train in {p}", "It was raining very hard", "{S} had to walk home"),
    ("found a kitten in {p}", "It was hiding under a car", "{S} took it home"),
    ("ran a race in {p}", "The road was long and steep", "{S} came in first"),
    ("baked a cake in {p}", "It had three layers and red cherries", "{S} gave it to the neighbours"),
    ("started a school in {p}", "There was only one room at first", "{S} now teaches two hundred children"),
    ("repaired a clock in {p}", "It had not moved for forty years", "{S} sold it to a museum"),
    ("painted a wall in {p}", "It used to be grey and sad", "{S} became famous for it"),
    ("built a house in {p}", "The windows look out on a lake", "{S} lives there with two dogs"),
    ("broke a leg in {p}", "The steps were full of ice", "{S} spent a month in bed"),
    ("met an old friend in {p}", "They had not seen each other for years", "{S} stayed until midnight"),
)
SHORTEN_REQUESTS = (
    "Shorten this to one sentence: {t}",
    "Summarize in one sentence: {t}",
    "Make this one sentence: {t}",
    "Summarise this text in one sentence: {t}",
    "Say this in one sentence: {t}",
)


def shorten(rng: Random) -> Example:
    """Returns three sentences to shorten: drop the middle one and join the others; the key is the three sentences."""
    name = made_up(rng).capitalize() if rng.random() < 0.12 else rng.choice(NAMES)
    place, pronoun = rng.choice(PLACES), rng.choice(("She", "He"))
    what, detail, end = rng.choice(EVENTS)
    what = what.format(p=place)
    if rng.random() < 0.5:
        detail = rng.choice(EVENTS)[1] if rng.random() < 0.3 else detail
    text = f"{name} {what}. {detail}. {end.format(S=pronoun)}."
    answer = f"{name} {what} and {end.format(S='').strip()}."
    return Example("shorten", rng.choice(SHORTEN_REQUESTS).format(t=text), answer, (text,))


PETS = "cat dog horse rabbit parrot goat hen pony turtle duck".split()
GOODS = "bike car boat hat coat bag house tent umbrella kite scarf lamp".split()
HUES = "red blue green yellow white black brown grey orange purple pink".split()
JOBS = "baker teacher doctor farmer painter sailor nurse cook pilot gardener tailor writer".split()
SPOTS = "garden kitchen garage attic cellar office barn hall shed bedroom".split()
FOODS = "apples bread soup cheese fish rice cake pears honey noodles".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
READING_REQUESTS = (
    "{t} Question: {q}",
    "Read the text and answer. {t} {q}",
    'Text: "{t}" {q}',
    "{t} {q}",
    "Text: {t} Question: {q}",
)


def reading(rng: Random) -> Example:
    """Returns a text of two to four sentences with a question about it; the key is the text."""
    one, two = rng.sample(NAMES, 2)
    if rng.random() < 0.12:
        one = made_up(rng).capitalize()
    facts_of: list[tuple[str, str, str]] = []
    for person in (one, two):
        place, job, good, hue = rng.choice(PLACES), rng.choice(JOBS), rng.choice(GOODS), rng.choice(HUES)
        spot, food, day, pet = rng.choice(SPOTS), rng.choice(FOODS), rng.choice(DAYS), rng.choice(PETS)
        choices = [
            (f"{person} lives in {place}.", f"Where does {person} live?", f"{person} lives in {place}."),
            (f"{person} is {article(job)}.", f"What is {person}'s job?", f"{person} is {article(job)}."),
            (f"{person} has a {hue} {good}.", f"What colour is {person}'s {good}?", f"{person}'s {good} is {hue}."),
            (f"{person} keeps the {pet} in the {spot}.", f"Where is {person}'s {pet}?", f"It is in the {spot}."),
            (f"{person} likes {food}.", f"What does {person} like?", f"{person} likes {food}."),
            (f"{person} came home on {day}.", f"When did {person} come home?", f"{person} came home on {day}."),
            (f"{person} has a {pet} called {made_up(rng).capitalize()}.", "", ""),
        ]
        pet_sentence = choices.pop()[0]
        called = pet_sentence.split()[-1].rstrip(".")
        choices.append((pet_sentence, f"What is the name of {person}'s {pet}?", f"The {pet} is called {called}."))
        facts_of += rng.sample(choices, 2 if person == one else rng.choice((0, 1, 1, 2)))
    _, question, answer = rng.choice(facts_of)
    if rng.random() < 0.4:
        rng.shuffle(facts_of)
    text = " ".join(sentence for sentence, _, _ in facts_of)
    return Example("reading", rng.choice(READING_REQUESTS).format(t=text, q=question), answer, (text,))


INTO_WORDINGS = (
    "How do you say {p} in {l}?",
    'How do you say "{p}" in {l}?',
    "What is {p} in {l}?",
    "Translate {p} into {l}.",
    'Translate "{p}" into {l}.',
    "{p} in {l}",
    "Say {p} in {l}.",
    "How do I say {p} in {l}?",
    "What is the {l} for {p}?",
    "Translate to {l}: {p}",
    "What is the {l} word for {p}?",
    "Translate '{p}' into {l}.",
    "Translate {p} to {l}.",
    "How do you say '{p}' in {l}?",
)
FROM_WORDINGS = (
    "What does {p} mean?",
    "What does {p} mean in English?",
    'What does "{p}" mean in English?',
    "Translate {p} into English.",
    "What is {p} in English?",
    "Translate to English: {p}",
    "What does '{p}' mean?",
    "Translate {p} to English.",
)
ENDS = ".?!。 "


def phrases(rng: Random) -> Example:
    """Returns a phrase to translate; the key is the phrase with its two languages in one wording."""
    number = rng.randrange(len(PHRASES))
    roll = rng.random()
    if roll < 0.5:
        source, target = 0, rng.randint(1, 4)
    elif roll < 0.75:
        source, target = rng.randint(1, 4), 0
    else:
        source, target = rng.sample(range(1, 5), 2)
    wording = rng.choice(INTO_WORDINGS if target else FROM_WORDINGS)
    said, answer = PHRASES[number][source], PHRASES[number][target]
    shown = said.strip(ENDS).lstrip("¿")
    if rng.random() < 0.7 and not shown.startswith("I "):
        shown = shown[0].lower() + shown[1:]
    prompt = wording.format(p=shown, l=LANGUAGES[target])
    keys = (f"{number}:{source}>{target}:{wording}",)
    same = [row[target] for row in PHRASES if row[source] == said]
    return Example("phrases", roughen(rng, prompt), answer, keys, {"any": sorted({answer, *same})})


REPEAT_REQUESTS = ("Repeat after me: {t}", "Repeat: {t}", "Say this again: {t}", "Repeat the words: {t}", "Say: {t}")


def repeat(rng: Random, n_words: int) -> Example:
    """Returns words to repeat. This is not a kind: it teaches copying, which most kinds need, early in training."""
    pools = (NAMES, PLACES, THINGS, CHARACTERS)
    words = [made_up(rng).capitalize() if rng.random() < 0.3 else rng.choice(rng.choice(pools)) for _ in range(n_words)]
    text = " ".join(words)
    return Example("repeat", rng.choice(REPEAT_REQUESTS).format(t=text), text)
