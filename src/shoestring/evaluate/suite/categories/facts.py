"""What a small model may have read: written for this project, each fact asked in one of several ways.

Facts are few, so that each wording is an item of its own; which side a fact is on is decided by the fact.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from shoestring.evaluate.suite import checks
from shoestring.evaluate.suite.question import Category, Draw, Question, ask

_CAPITALS = """
France: Paris; Italy: Rome; Spain: Madrid; Germany: Berlin; Japan: Tokyo; Russia: Moscow; China: Beijing; Egypt:
Cairo; Greece: Athens; Portugal: Lisbon; Austria: Vienna; Poland: Warsaw; Sweden: Stockholm; Norway: Oslo; Denmark:
Copenhagen; Finland: Helsinki; Ireland: Dublin; Hungary: Budapest; Belgium: Brussels; Canada: Ottawa; Australia:
Canberra; Kenya: Nairobi; Cuba: Havana; Peru: Lima; Chile: Santiago; Argentina: Buenos Aires; Turkey: Ankara; Iran:
Tehran; Iraq: Baghdad; India: New Delhi; Thailand: Bangkok; Vietnam: Hanoi; Indonesia: Jakarta; Nepal: Kathmandu;
Ukraine: Kyiv, Kiev; Romania: Bucharest; Bulgaria: Sofia; Croatia: Zagreb; Serbia: Belgrade; Iceland: Reykjavik;
Mexico: Mexico City; Colombia: Bogota, Bogotá; Venezuela: Caracas; Ecuador: Quito; Morocco: Rabat; Tunisia: Tunis;
Ethiopia: Addis Ababa; Ghana: Accra; Senegal: Dakar; Jamaica: Kingston; Scotland: Edinburgh; Wales: Cardiff; South
Korea: Seoul; North Korea: Pyongyang; Mongolia: Ulaanbaatar; Lebanon: Beirut; Syria: Damascus; Jordan: Amman; the
Czech Republic: Prague; the Netherlands: Amsterdam; the Philippines: Manila; the United Kingdom: London
"""
_OPPOSITES = """
hot: cold; big: small, little; up: down; day: night; open: closed, shut; fast: slow; happy: sad, unhappy; light: dark,
heavy; high: low; rich: poor; strong: weak; early: late; full: empty; hard: soft, easy; long: short; new: old; wet:
dry; inside: outside; left: right; north: south; east: west; war: peace; love: hate; true: false; win: lose; buy:
sell; push: pull; young: old; alive: dead; clean: dirty; thick: thin; wide: narrow; deep: shallow; sweet: sour,
bitter; loud: quiet, soft; begin: end; above: below; before: after; near: far; first: last; give: take; remember:
forget; brave: cowardly, afraid; sharp: blunt, dull; rough: smooth; tight: loose; cheap: expensive; guilty: innocent;
absent: present; ancient: modern; arrive: leave, depart; ascend: descend; maximum: minimum; victory: defeat
"""
_YOUNG = """
cat: kitten; dog: puppy; cow: calf; horse: foal; sheep: lamb; pig: piglet; hen: chick; duck: duckling; goose: gosling;
bear: cub; lion: cub; goat: kid; deer: fawn; frog: tadpole; swan: cygnet; owl: owlet; kangaroo: joey; eagle: eaglet;
elephant: calf; whale: calf; wolf: pup, cub; fox: cub, kit; rabbit: kit, bunny; butterfly: caterpillar; seal: pup
"""
_ELEMENTS = """
hydrogen: H; helium: He; lithium: Li; carbon: C; nitrogen: N; oxygen: O; fluorine: F; neon: Ne; sodium: Na; magnesium:
Mg; aluminium: Al; silicon: Si; phosphorus: P; sulfur: S; chlorine: Cl; argon: Ar; potassium: K; calcium: Ca; iron:
Fe; nickel: Ni; copper: Cu; zinc: Zn; bromine: Br; silver: Ag; tin: Sn; iodine: I; gold: Au; mercury: Hg; lead: Pb;
uranium: U; titanium: Ti; chromium: Cr; manganese: Mn; cobalt: Co; platinum: Pt; barium: Ba; radium: Ra; boron: B;
tungsten: W
"""
_EVERYDAY = """
How many days are in a week?: 7, seven; How many months are in a year?: 12, twelve; How many legs does a spider have?:
8, eight; How many legs does an insect have?: 6, six; How many minutes are in an hour?: 60, sixty; How many seconds
are in a minute?: 60, sixty; How many hours are in a day?: 24, twenty-four; How many sides does a triangle have?: 3,
three; How many sides does a square have?: 4, four; How many sides does a hexagon have?: 6, six; How many wheels does
a bicycle have?: 2, two; How many letters are in the English alphabet?: 26, twenty-six; How many continents are
there?: 7, seven; How many degrees are in a right angle?: 90, ninety; How many degrees are in a circle?: 360; How many
years are in a century?: 100, hundred; How many years are in a decade?: 10, ten; How many things are in a dozen?: 12,
twelve; How many strings does a violin have?: 4, four; At how many degrees Celsius does water freeze?: 0, zero; At how
many degrees Celsius does water boil at sea level?: 100, hundred; What do bees make?: honey; What gas do we breathe in
to live?: oxygen; Which star gives us daylight?: sun; What is frozen water called?: ice; Which planet do we live on?:
earth; Which planet is known as the red planet?: mars; Which is the largest planet of the solar system?: jupiter;
Which planet is closest to the sun?: mercury; Which planet has the best known rings?: saturn; What goes around the
earth once a month?: moon; Which animal is the tallest?: giraffe; Which animal is the largest on earth?: whale; Which
bird cannot fly and is the largest?: ostrich; Which season follows winter?: spring; Which season follows summer?:
autumn, fall; Which month comes after March?: april; Which day comes after Monday?: tuesday; Which day comes before
Sunday?: saturday; What colour do blue and yellow make?: green; What colour do red and white make?: pink; What colour
do red and yellow make?: orange; What is the main language of Brazil?: portuguese; Which language is spoken in
Austria?: german; What is the largest ocean?: pacific; On which continent is Egypt?: africa; On which continent is
Brazil?: south america; What is the longest river of Africa?: nile; What is the highest mountain on earth?: everest;
Who wrote Hamlet?: shakespeare; Who painted the Mona Lisa?: leonardo, da vinci; Who developed the theory of
relativity?: einstein; Which metal is liquid at room temperature?: mercury; What is H2O?: water; What do plants take
in from the air to grow?: carbon dioxide, co2; Which organ pumps blood?: heart; With which organ do we breathe?: lung,
lungs; What is the hardest natural material?: diamond; In which city is the Eiffel Tower?: paris; In which city is the
Colosseum?: rome; Which country is shaped like a boot?: italy
"""


def _table(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Entries "question: answer, another wording;"."""
    found = []
    for entry in " ".join(text.split()).split(";"):
        asked, _, answers = entry.rpartition(": ")
        found.append((asked.strip(), tuple(answer.strip() for answer in answers.split(","))))
    return found


def _asked(name: str, text: str, wordings: Sequence[str]) -> Draw:
    facts = _table(text)

    def draw(rng: random.Random) -> Question:
        about, answers = rng.choice(facts)
        question = rng.choice(wordings).format(about)
        return ask(f"fact {name} {about}", question, answers[0], checks.says(*answers))

    return draw


_ALONE = (
    "{}",
    "Answer in a few words: {}",
    "{} Answer in one or two words.",
    "Question: {}",
    "Tell me: {}",
    "Quick question. {}",
)

CATEGORIES = (
    Category("capitals", "facts", "of countries", _asked("capital", _CAPITALS, (
        "What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?",
        "{}: what is its capital?", "The capital of {} is", "Tell me the capital city of {}.")), 0.1, share=0.5),
    Category("opposites", "facts", "of common words", _asked("opposite", _OPPOSITES, (
        'What is the opposite of "{}"?', 'Give a word that means the opposite of "{}".',
        'Which word is the opposite of "{}"?', 'The opposite of "{}" is', 'Name an antonym of "{}".',
        'If something is not "{}", what is it? Give the opposite word.')), 0.1, share=0.5),
    Category("young animals", "facts", "what they are called", _asked("young", _YOUNG, (
        "What is a young {} called?", "What do we call a baby {}?", "Name the young of a {}.",
        "The young of a {} is called a", "What is the word for a baby {}?", "A baby {} is called what?",
        "Give the name for the young of a {}.",
        "Which word do we use for a young {}?", "Do you know what a young {} is called?",
        "In one word: what is a baby {}?")), 0.14, share=0.5),
    Category("chemical symbols", "facts", "of elements", _asked("element", _ELEMENTS, (
        "What is the chemical symbol of {}?", "Give the symbol of the element {}.", "Which symbol stands for {}?",
        "The chemical symbol for {} is", "How is {} written in the periodic table?", "Name the chemical symbol for {}.",
        "What is the symbol for {} in chemistry?")), 0.1, share=0.5),
    Category("everyday knowledge", "facts", "numbers, nature, places, people", _asked("everyday", _EVERYDAY, _ALONE),
             0.1, share=0.5),
)  # fmt: skip
