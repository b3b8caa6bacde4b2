"""Word lists and sentences from which the default calibration data is put together."""

import random
from typing import Any

NAMES = ("Ada", "Bilal", "Chiara", "Dmitri", "Elif", "Femi", "Greta", "Hana", "Ivan", "Jing", "Kofi", "Lena",
         "Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Sven", "Tomoko")  # fmt: skip
PLACES = ("harbour", "library", "town hall", "bakery", "station", "greenhouse", "workshop", "clinic",
          "market", "museum", "warehouse", "school", "ferry", "allotment", "theatre", "laundry")  # fmt: skip
THINGS = ("kettle", "bicycle", "ladder", "printer", "tent", "lantern", "blanket", "radio", "compass",
          "drill", "notebook", "parasol", "thermos", "toolbox", "camera", "rucksack", "pump")  # fmt: skip
FOODS = ("lentils", "apples", "rye bread", "oat milk", "tomatoes", "rice", "olive oil", "carrots", "yoghurt",
         "noodles", "honey", "spinach", "eggs", "ginger", "potatoes", "cheese")  # fmt: skip
QUALITIES = ("light", "sturdy", "quiet", "cheap", "worn", "waterproof", "red", "heavy", "reliable", "narrow",
             "second-hand", "spare", "borrowed", "noisy")  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TOPICS = ("the spring fair", "water meters", "the night train", "lost keys", "a new footbridge", "bee hives",
          "the choir's concert", "winter tyres", "the reading group", "solar panels", "parcels")  # fmt: skip

_SENTENCES = (
    "{name} carried the {quality} {thing} from the {place} to the {place2} before {hour} o'clock.",
    "On {day} the {place} stays closed, because {name} is repairing the roof.",
    "About {n2} people asked about {topic}, which is {n} more than last year.",
    "The {thing} costs {price} euros, and a {quality} one can be hired for {n} a day.",
    "Nobody at the {place} remembered who had ordered {n} boxes of {food}.",
    "If it rains, the meeting on {topic} moves to the {place}.",
    "{name} and {name2} disagree: one prefers a {quality} {thing}, the other none at all.",
    "Please bring {food}, {food2} and a {thing} to the {place} by {day}.",
    "The walk from the {place} to the {place2} takes {n} minutes, or half of that by bicycle.",
    "After {hour}:{minute:02d} only the side door of the {place} is open.",
    "Most of the money, {price} euros, went into {topic}.",
    "\"Keep the {thing} dry,\" {name} wrote, \"and return it on {day}.\"",
    "Last winter the temperature in the {place} fell to -{small} °C for {n} hours.",
    "It took {small} attempts until the {quality} {thing} worked again.",
    "Since the {place} has no lift, the {thing} was left downstairs.",
    "Between {hour} and {hour2} o'clock, {name} answers questions about {topic}.",
    "The soup needs {food}, {food2}, a little salt and {n} minutes of patience.",
    "Of the {n2} letters that arrived on {day}, {small} were about {topic}.",
    "Section {small}.{small2} of the plan explains why {topic} had to wait.",
    "A {quality} {thing} stood at the entrance, next to {n} crates of {food}.",
)  # fmt: skip


def words(rng: random.Random) -> dict[str, Any]:
    """Draw something for every slot that the templates have."""
    name, name2 = rng.sample(NAMES, 2)
    place, place2 = rng.sample(PLACES, 2)
    food, food2 = rng.sample(FOODS, 2)
    hour = rng.randint(6, 11)
    return {
        "name": name,
        "name2": name2,
        "place": place,
        "place2": place2,
        "food": food,
        "food2": food2,
        "thing": rng.choice(THINGS),
        "quality": rng.choice(QUALITIES),
        "day": rng.choice(DAYS),
        "topic": rng.choice(TOPICS),
        "n": rng.randint(3, 60),
        "n2": rng.randint(61, 950),
        "small": rng.randint(2, 9),
        "small2": rng.randint(1, 9),
        "price": f"{rng.randint(8, 900)}.{rng.randint(0, 99):02d}",
        "hour": hour,
        "hour2": hour + rng.randint(1, 3),
        "minute": 5 * rng.randint(0, 11),
    }


def paragraph(rng: random.Random, n: int) -> str:
    """Put n different sentences one after the other."""
    return " ".join(sentence.format(**words(rng)) for sentence in rng.sample(_SENTENCES, n))
