"""Short stories on request: a request names one or two things, and the story is about them.

    sample(Random(0)).prompt    # "Tell me a story about a fox and a lantern."

A story has four to six sentences and contains each requested word. The plot depends on whether the request names a
character and a thing, two characters, or two things.
"""

from __future__ import annotations

import re
from random import Random

from example import Example, roughen
from tables import ADJECTIVES, CHARACTERS, HERO_NAMES, NAMES, STORY_PLACES, THINGS

REQUESTS = (
    "Tell me a story about {topic}.",
    "Tell me a short story about {topic}.",
    "Write a story about {topic}.",
    "Write a short story about {topic}.",
    "Can you tell me a story about {topic}?",
    "Please tell me a story about {topic}.",
    "I would like a story about {topic}.",
    "Make up a story about {topic}.",
    "Give me a story with {topic}.",
    "Story about {topic}.",
    "A short story about {topic}, please.",
    "Could you write a little story about {topic}?",
    "Tell a bedtime story about {topic}.",
)
OPEN_REQUESTS = (
    "Tell me a story.",
    "Tell me a short story.",
    "Write a story.",
    "Can you tell me a story?",
    "Please tell me a story.",
    "I want to hear a story.",
    "Tell me another story.",
    "Tell me a bedtime story.",
    "Write a short story for me.",
    "Story, please.",
)

Plot = tuple[str, ...]
FOUND: tuple[Plot, ...] = (
    (
        "One {time}, {name} found {a_thing} near the {spot}.",
        '"Whose {thing} is this?" {name} asked.',
        "Nobody in the {place} knew, so {name} took good care of it.",
        "At last an old woman came and said the {thing} was hers.",
        "She was so glad that she let {name} keep it.",
    ),
    (
        "{name} had always wanted {a_thing}.",
        "One {time}, a traveller came by and offered to trade one for a song.",
        "{name} sang until the stars came out.",
        "From then on, the {thing} was never far away.",
    ),
    (
        "The most precious thing that {name} owned was {a_thing}.",
        "One {time}, the {thing} was gone.",
        "{name} looked under every stone and behind every tree.",
        "In the end it was right beside the bed, where it had been all along.",
        "{name} laughed and went to sleep.",
    ),
    (
        "One {time}, {name} saw {a_thing} at the {spot}, and it was broken.",
        "It took all day to mend it.",
        "When the work was done, the whole {place} came to look.",
        "{name} shared the {thing} with everyone, and nobody was ever bored again.",
    ),
    (
        "One {time}, a storm came to the {place}.",
        "{name} was afraid, but remembered the {thing} in the cupboard.",
        "With the {thing} close by, the night did not seem so dark.",
        "In the morning the sun came out, and {name} was not afraid of storms any more.",
    ),
)
MET: tuple[Plot, ...] = (
    (
        "One {time}, {name} met {a_other} near the {spot}.",
        'The {other} looked sad and said, "I have lost my way."',
        "{name} showed the {other} the path home.",
        "Since that day the two have been best friends.",
    ),
    (
        "Next door lived {a_other} who never said hello.",
        "One {time}, {name} baked a cake and brought half of it over.",
        "The {other} smiled for the first time in years.",
        "Now they have tea together every Sunday.",
    ),
    (
        "One {time}, {name} and {a_other} had a race to the {spot}.",
        "The {other} was faster, but stopped to help a bird with a hurt wing.",
        "{name} stopped too, and they carried the bird home together.",
        "Nobody won the race, and nobody minded.",
    ),
)
BOTH: tuple[Plot, ...] = (
    (
        "One {time}, {name} found {a_thing} and {a_other} in the attic.",
        "The {thing} was dusty and the {other} was very old.",
        "{name} cleaned them both until they looked like new.",
        "Grandmother cried with joy, because they had been hers when she was small.",
    ),
    (
        "{name} wanted to give a friend {a_thing} but had only {a_other}.",
        "So {name} went to the market and asked for a trade.",
        "A kind man gave {name} the {thing} and did not even take the {other}.",
        "That {time}, two friends sat by the {spot} and were happy.",
    ),
)
OPENINGS = (
    "Once upon a time there was {hero} named {name} who lived in the {place}.",
    "There once was {hero} called {name} in a faraway {place}.",
    "In the {place} lived {hero} named {name}.",
)
CHILD_OPENINGS = ("Once upon a time there was a child named {name}.", "In the {place} lived a child called {name}.")
SPOTS = ("river", "old bridge", "big oak", "lake", "hill", "well", "gate", "road")
TIMES = ("morning", "evening", "day", "night", "afternoon")
CONSONANTS, VOWELS = "b d f g k l m n p r s t v z bl gr tr sh".split(), "a e i o u oo".split()


def article(noun: str) -> str:
    """Returns the noun with its article: `a fox`, `an owl`, but `a unicorn`."""
    return ("an " if noun[0] in "aeiou" and not noun.startswith("uni") else "a ") + noun


def made_up(rng: Random) -> str:
    """Returns a word that does not exist, so that the network learns to copy words it has never seen."""
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 2, 3)))) + rng.choice(
        ("", "n", "k", "l", "p")
    )


def tell(rng: Random, first: str, second: str | None, adjective: str = "") -> str:
    """Returns a story about `first` and, if given, `second`; words outside the tables count as characters."""
    words = [first] + ([second] if second else [])
    characters = [w for w in words if w not in THINGS]
    things = [w for w in words if w in THINGS]
    slots = {
        "name": rng.choice(HERO_NAMES + NAMES[:30]),
        "place": rng.choice(STORY_PLACES),
        "spot": rng.choice(SPOTS),
        "time": rng.choice(TIMES),
    }
    plot: Plot
    if not characters and len(things) == 2:
        opening, plot = rng.choice(CHILD_OPENINGS), rng.choice(BOTH)
        slots["thing"], slots["other"] = things
    elif not characters:
        opening, plot = rng.choice(CHILD_OPENINGS), rng.choice(FOUND)
        slots["thing"] = things[0]
    else:
        hero = f"{adjective} {characters[0]}".strip()
        opening, slots["hero"] = rng.choice(OPENINGS), article(hero)
        if len(characters) == 2:
            plot, slots["other"] = rng.choice(MET), characters[1]
        else:
            plot, slots["thing"] = rng.choice(FOUND), things[0] if things else rng.choice(THINGS)
    slots |= {f"a_{key}": article(slots[key]) for key in ("thing", "other") if key in slots}
    return " ".join(sentence.format(**slots) for sentence in (opening, *plot))


def sample(rng: Random) -> Example:
    """Returns a request with its story; the key is the pair of words; a request with fewer words has no key."""
    kind = rng.random()
    if kind < 0.06:
        words = [rng.choice(CHARACTERS)]
        return Example("story", roughen(rng, rng.choice(OPEN_REQUESTS)), tell(rng, words[0], None), (), {"words": []})
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.2 else ""
    first = made_up(rng) if rng.random() < 0.12 else rng.choice(CHARACTERS)
    if kind < 0.3:
        first = first if rng.random() < 0.8 else rng.choice(THINGS)
        adjective = "" if first in THINGS else adjective
        topic = article(f"{adjective} {first}".strip())
        answer, words = tell(rng, first, None, adjective), [first]
    else:
        second = rng.choice(THINGS)
        pairing = rng.random()
        if pairing < 0.4:
            second = made_up(rng) if rng.random() < 0.1 else rng.choice(CHARACTERS)
        elif pairing < 0.5:
            first, adjective = rng.choice(THINGS), ""
        if second == first:
            return sample(rng)
        words = [first, second]
        swap = rng.random() < 0.25 and not adjective
        shown = [article(f"{adjective} {first}".strip()), article(second)]
        topic = " and ".join(reversed(shown) if swap else shown)
        answer = tell(rng, second, first) if swap else tell(rng, first, second, adjective)
    keys = ("+".join(sorted(words)),) if len(words) == 2 else ()
    prompt = rng.choice(REQUESTS).format(topic=topic)
    return Example("story", roughen(rng, prompt), answer, keys, {"words": words})


def title(words: list[str]) -> str:
    """Returns a title: `["fox", "lantern"]` becomes `The Fox and the Lantern`."""
    return "The " + " and the ".join(word.capitalize() for word in words)


def sentences(text: str) -> list[str]:
    """Returns the sentences of a story; `"Who is it?" Pip asked.` is one sentence."""
    return [s for s in re.split(r"(?<=[.!?])\s+|(?<=[.!?]\")\s+(?=[A-Z])(?!\w+ asked)", text.strip()) if s]
