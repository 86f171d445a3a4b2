"""Words that exercises are made of.

None of them is a word, a topic or a name of the suite that evaluates (`tests/data/test_made_kinds.py` compares): what
is learned is to keep to a form, whatever the word in it.
"""

from __future__ import annotations

NOUNS = (
    "apron", "arrow", "axe", "badge", "balloon", "banner", "barrel", "bell", "bench", "biscuit", "boot", "bowl",
    "bracelet",
    "brush", "cabin", "camel", "canoe", "cart", "chalk", "cherry", "chimney", "clover", "coat", "compass", "cork",
    "crayon",
    "crown", "cushion", "daisy", "diary", "donkey", "drum", "eagle", "easel", "elbow", "emerald", "farmer", "fence",
    "fiddle",
    "flag", "flute", "fossil", "gate", "ghost", "glove", "grape", "guest", "hedge", "heron", "hinge", "hook", "hut",
    "igloo",
    "inkwell", "jewel", "jigsaw", "jug", "keeper", "knight", "knot", "lake", "lemon", "lever", "lily", "lobster",
    "loom",
    "mask", "melon", "monk", "mouse", "museum", "nail", "nurse", "oar", "onion", "otter", "oven", "owl", "paddle",
    "paper",
    "peach", "pearl", "piano", "pigeon", "plough", "poet", "puddle", "pump", "queen", "quilt", "radio", "raft",
    "raisin",
    "rake", "robin", "roof", "sandal", "scarf", "shell", "shovel", "sponge", "squirrel", "stamp", "statue", "swing",
    "table",
    "tailor", "teapot", "thread", "tiger", "torch", "trumpet", "tulip", "urn", "vase", "village", "visitor", "wagon",
    "wallet", "wheel", "wizard", "wool", "wren", "yard", "zipper",
    "acorn", "album", "anvil", "barn", "beetle", "bonnet", "branch", "broom", "cactus", "cannon", "carrot", "cave",
    "cello", "chapel",
    "clock", "comet", "couch", "cricket", "dagger", "deck", "dolphin", "earring", "eyebrow", "fiddler", "finch",
    "fridge", "gallery",
    "goblet", "gown", "hawk", "hermit", "icicle", "jungle", "kennel", "knife", "lace", "lamb", "locket", "mantle",
    "medal", "mill",
    "motor", "muffin", "oboe", "opal", "palace", "panda", "parrot", "petal", "pilgrim", "pitcher", "plum", "poster",
    "potato",
    "prince", "quiver", "rafter", "razor", "reed", "riddle", "sack", "scarecrow", "seagull", "sketch", "sled",
    "slipper", "soldier",
    "spade", "stool", "sunset", "sweater", "tent", "thimble", "tractor", "turtle", "vest", "weaver", "whale", "yacht",
)  # fmt: skip
TOPICS = (
    "fog", "cheese", "buses", "the moon", "wind", "painting", "forests", "dreams", "roads", "coffee", "rivers", "work",
    "fire", "soup", "ships", "the desert", "autumn", "dancing", "parks", "poems", "towers", "honey", "caves",
    "holidays",
    "ice", "salad", "bicycles", "the night", "spring", "singing", "farms", "stories", "castles", "chocolate", "beaches",
    "sport",
    "clouds", "rice", "planes", "the city", "friendship", "theatre", "zoos", "languages", "markets", "butter",
    "islands", "cooking",
)  # fmt: skip
PEOPLE = (
    "my sister", "my brother", "our neighbour", "the old teacher", "a young woman", "his grandfather", "my aunt",
    "the new doctor", "a friend of mine", "her cousin", "the children", "everybody", "we", "they", "I", "people here",
)  # fmt: skip
PLACES = (
    "behind the house", "on the shelf", "near the station", "at home", "in our street", "by the door", "in town",
    "under the stairs", "across the square", "in her bag", "on a hill", "at the office", "in my room", "upstairs",
)  # fmt: skip
TIMES = (
    "in the morning", "every evening", "last summer", "on Sundays", "after lunch", "at night", "years ago",
    "before dinner",
    "these days", "now and then", "all year", "once a week",
)  # fmt: skip
NAMES = (
    "Adele", "Bert", "Carla", "Denis", "Edith", "Fred", "Gina", "Henry", "Iris", "Julia", "Karl", "Laura", "Max",
    "Nina",
    "Oscar", "Paula", "Ruth", "Simon", "Theo", "Ursula", "Victor", "Wanda", "Xenia", "Yvonne", "Zoe",
)  # fmt: skip
TOWNS = (
    "Athens", "Boston", "Bristol", "Chicago", "Dublin", "Geneva", "Glasgow", "Hamburg", "Leeds", "Lisbon", "Madrid",
    "Milan",
    "Munich", "Naples", "Oxford", "Prague", "Seville", "Toronto", "Venice", "Zurich",
)  # fmt: skip
