"""The words of the built-in behaviours: ordinary English, one list for each role in a sentence.

The lists were written for this project. A word is used only if the model's tokenizer encodes it as
one token after a space (`TokenizerFilter.keep_words`), so the lists are long enough to lose some
words. No two lists of nouns share a word.
"""

from __future__ import annotations

NAMES = tuple(
    """
    Aaron Adam Alan Albert Alex Alice Allison Amanda Amy Andrea Andrew Angela Anna Anne Anthony
    Arthur Ashley Barbara Ben Benjamin Beth Betty Bill Bob Brandon Brenda Brian Bruce Carl Carol
    Caroline Catherine Charles Charlotte Chris Christine Claire Clara Colin Connor Daniel David
    Deborah Dennis Diana Donald Donna Dorothy Edward Elizabeth Emily Emma Eric Erin Ethan Eva Evan
    Frank Fred Gary George Gloria Gordon Graham Greg Hannah Harold Harry Heather Helen Henry
    Howard Ian Isaac Jack Jacob James Jane Janet Jason Jennifer Jeremy Jessica Jim Joan Joe John
    Jonathan Joseph Joshua Julia Julie Justin Karen Kate Katie Keith Kevin Kyle Larry Laura Lauren
    Leo Linda Lisa Louis Lucy Luke Margaret Maria Martha Martin Mary Matthew Megan Melissa Michael
    Michelle Nancy Natalie Nathan Nicole Oliver Oscar Patricia Patrick Paul Peter Philip Rachel
    Ralph Rebecca Richard Robert Roger Ruth Ryan Sally Sam Samantha Sandra Sara Sarah Sean Sharon
    Simon Sophie Stephen Steven Susan Teresa Thomas Tim Tom Tony Tyler Victor Victoria Vincent
    Walter Wendy William Zoe
    """.split()
)
"""First names."""

PEOPLE = tuple(
    """
    boy girl teacher doctor student farmer driver king queen lawyer soldier guard friend player
    writer actor worker nurse author artist judge captain pilot prince priest singer engineer
    manager officer visitor
    """.split()
)
"""Nouns for persons. Their plural adds an s."""

THINGS = tuple(
    """
    key cabinet dog cat horse bird car boat truck table chair letter picture window door bottle
    tree flower lamp cup plate toy ship road river mountain
    """.split()
)
"""Nouns for things and animals. Their plural adds an s."""

PLACES = tuple(
    """
    park store school office garden kitchen library station market beach hotel hospital museum
    restaurant church theater bank farm airport bar cafe lake castle pool forest cabin tower
    stadium harbor village
    """.split()
)
"""Places in which a scene can happen."""

OBJECTS = tuple(
    """
    book drink ball ring coat hat map gift knife bag pen phone camera ticket watch basket necklace
    card coin cake sandwich newspaper guitar candle mirror blanket pencil rope jacket sword
    """.split()
)
"""Objects that one person can hand to another. Each takes the article "a"."""

EVENTS = tuple(
    """
    war siege voyage festival trial conflict campaign project strike revolt reign journey famine
    plague construction expedition battle mission struggle alliance drought study tour rebellion
    crisis occupation
    """.split()
)
"""Events that last for years."""

OTHER_NOUNS = tuple(
    """
    apple stone silver copper paper glass salt sugar bread butter cloud storm winter summer music
    dance dream engine metal cotton leather lemon orange tiger lion wolf eagle snake spider fish
    whale rabbit mouse shirt shoe sock button needle thread hammer nail wood brick wall roof floor
    island desert valley ocean wave sand field grass leaf root seed corn rice soup pepper honey
    milk coffee tea wine beer clock radio screen wheel chain wire pipe tunnel
    """.split()
)
"""More nouns, for random sequences."""

CENTURIES = tuple(str(century) for century in range(12, 19))
"""First halves of a year, e.g. the 17 of 1732, as most vocabularies split years."""

YEARS = tuple(f"{year:02d}" for year in range(2, 100))
"""Second halves of a year, e.g. the 32 of 1732."""

ADJECTIVES = ("old", "young", "tall", "quiet", "famous", "small", "large", "heavy")
"""Adjectives that can describe a person or a thing."""

MEETING_VERBS = ("saw", "met", "found", "called", "helped", "thanked")
"""Verbs for what one person did with another. The past tense shows no number."""

TRAVEL_VERBS = ("went", "walked", "ran", "drove", "moved")
"""Verbs for going to a place, in the past tense."""

GIVING_VERBS = ("gave", "handed", "passed", "offered", "sent", "brought", "showed", "sold")
"""Verbs for handing an object to somebody, in the past tense."""
