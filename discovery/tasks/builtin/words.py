"""The words of the built-in behaviours: ordinary English, one list for each role in a sentence.

The lists were written for this project. A word is used only if the model's tokenizer encodes it as
one token after a space (`TokenizerFilter.keep_words`), so the lists are long enough to lose some
words. No two lists of nouns share a word.
"""

from __future__ import annotations

from types import MappingProxyType

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

WOMEN = tuple(
    """
    Alice Amanda Amy Angela Anna Anne Barbara Beth Betty Brenda Carol Caroline Catherine Charlotte
    Christine Claire Clara Deborah Diana Donna Dorothy Elizabeth Emily Emma Gloria Hannah Heather
    Helen Jane Janet Jennifer Jessica Julia Julie Karen Kate Katie Laura Linda Lisa Lucy Margaret
    Maria Martha Mary Megan Melissa Michelle Nancy Natalie Nicole Patricia Rachel Rebecca Ruth Sally
    Samantha Sandra Sara Sarah Sharon Sophie Susan Teresa Victoria Wendy
    """.split()
)
"""First names of women. Names that men commonly have too are in neither list."""

MEN = tuple(
    """
    Aaron Adam Alan Albert Andrew Anthony Arthur Ben Benjamin Bill Bob Brian Bruce Carl Charles
    Daniel David Dennis Donald Edward Eric Frank Fred Gary George Graham Greg Harold Harry Henry
    Isaac Jack Jacob James Jason Jeremy Jim Joe John Jonathan Joseph Joshua Justin Keith Kevin Larry
    Louis Luke Martin Matthew Michael Nathan Oliver Oscar Patrick Paul Peter Philip Ralph Richard
    Robert Roger Ryan Simon Stephen Steven Thomas Tim Tom Victor Vincent Walter William
    """.split()
)
"""First names of men. Names that women commonly have too are in neither list."""

NEUTRAL_PEOPLE = tuple(
    """
    teacher doctor student farmer driver lawyer guard player writer worker artist judge captain
    pilot singer engineer manager officer visitor
    """.split()
)
"""Nouns for persons that name no gender."""

MOODS = ("tired", "happy", "sad", "angry", "calm", "nervous", "busy", "surprised")
"""Adjectives for how a person looks."""

CAPITALS = MappingProxyType(
    dict(
        entry.split(":")
        for entry in """
        Afghanistan:Kabul Australia:Canberra Austria:Vienna Belgium:Brussels Britain:London
        Bulgaria:Sofia Canada:Ottawa China:Beijing Croatia:Zagreb Cuba:Havana Denmark:Copenhagen
        Egypt:Cairo Finland:Helsinki France:Paris Germany:Berlin Greece:Athens Hungary:Budapest
        Indonesia:Jakarta Iran:Tehran Iraq:Baghdad Ireland:Dublin Italy:Rome Japan:Tokyo
        Kenya:Nairobi Lebanon:Beirut Libya:Tripoli Nepal:Kathmandu Norway:Oslo Pakistan:Islamabad
        Peru:Lima Poland:Warsaw Portugal:Lisbon Qatar:Doha Romania:Bucharest Russia:Moscow
        Serbia:Belgrade Somalia:Mogadishu Spain:Madrid Sweden:Stockholm Syria:Damascus
        Thailand:Bangkok Turkey:Ankara Venezuela:Caracas Vietnam:Hanoi
        """.split()
    )
)
"""The capital of each country. Both names are one word."""

ARGUMENTS = tuple(
    """
    load size files last title name path value index count line text data file node list user group
    type state mode level color width height length order limit source target input output message
    image page model result test event item query date time code link label score rate step
    start end offset port host password token method string number object class array block rows
    shape format version parent child prefix suffix
    """.split()
)
"""Names that arguments of Python functions have."""
