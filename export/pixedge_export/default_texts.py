"""Conversations without pictures, for calibration when no data is at hand."""

import json
import random
from collections.abc import Callable
from typing import Any

from pixedge_export.default_words import FOODS, NAMES, THINGS, paragraph, words


def text_conversation(rng: random.Random) -> list[dict[str, Any]]:
    """Make a conversation about two different subjects, one in four under a system prompt."""
    system = []
    if rng.random() < 0.25:
        system = [{"role": "system", "content": rng.choice(_SYSTEM).format(**words(rng))}]
    messages = []
    for question, answer in [turn for kind in rng.sample(_KINDS, 2) for turn in kind(rng)]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return system + messages


_SYSTEM = (
    "You are a patient assistant at the {place}. Answer briefly and say so when you are not sure.",
    "Reply in plain language and use the metric system.",
    "You help {name} with letters, lists and small programs. Do not invent facts.",
    "Answer with facts first and reasons second. Today is {day}.",
)

_Turns = list[tuple[str, str]]


def _letter(rng: random.Random) -> _Turns:
    w = words(rng)
    body = paragraph(rng, rng.randint(3, 5))
    return [
        (
            "Write a short letter from {name} to {name2} about {topic}.".format(**w),
            f"Dear {w['name2']},\n\nthank you for asking about {w['topic']}. {body}\n\n"
            f"Kind regards\n{w['name']}",
        )
    ]


def _summary(rng: random.Random) -> _Turns:
    w = words(rng)
    text = paragraph(rng, rng.randint(5, 7))
    first = text.split(". ")[0].rstrip(".")
    return [
        (
            f"Summarise this note in two sentences:\n\n{text}",
            f"The note says: {first}. The rest is about daily"
            f" matters, such as who brings what, when the doors open, and what it costs.",
        ),
        ("Now give it a title of at most five words.", f"News from the {w['place']}"),
    ]


def _steps(rng: random.Random) -> _Turns:
    w = words(rng)
    verbs = rng.sample(("Clean", "Check", "Loosen", "Photograph", "Label", "Dry", "Measure", "Tighten"), 5)
    parts = rng.sample(
        ("the handle", "both screws", "the cable", "the seal", "the lid", "the inside", "the base"), 5
    )
    steps = "\n".join(
        f"{i}. {verb} {part}." for i, (verb, part) in enumerate(zip(verbs, parts, strict=True), 1)
    )
    return [
        (
            f"How do I look after a {w['quality']} {w['thing']}? Give me numbered steps.",
            f"Five steps suffice:\n\n{steps}\n\nRepeat this every {w['small']} months.",
        ),
        (
            "Which step can I skip if I am in a hurry?",
            f"Step {rng.randint(2, 5)} can wait until next time; the others prevent damage.",
        ),
    ]


def _sums(rng: random.Random) -> _Turns:
    w = words(rng)
    count, price, paid = rng.randint(2, 30), rng.randint(3, 40), 50 * rng.randint(20, 40)
    a, b = rng.randint(100, 9999), rng.randint(100, 9999)
    return [
        (
            f"{w['name']} buys {count} packets of {w['food']} at {price} euros each and pays with {paid}"
            " euros. How much change is there?",
            f"The packets cost {count} × {price} = {count * price} euros. The change is"
            f" {paid} − {count * price} = {paid - count * price} euros.",
        ),
        (f"What is {a} + {b}?", f"{a} + {b} = {a + b}"),
        (f"And {a} × {w['small']}?", f"{a} × {w['small']} = {a * w['small']}"),
    ]


def _records(rng: random.Random) -> _Turns:
    rows = [
        {
            "id": rng.randint(1000, 9999),
            "name": rng.choice(NAMES),
            "item": rng.choice(THINGS),
            "price": rng.randint(100, 9900) / 100,
            "paid": rng.random() < 0.5,
        }
        for _ in range(rng.randint(2, 4))
    ]
    lines = "\n".join(
        f"{r['id']}: {r['name']} took a {r['item']} for {r['price']:.2f} ({'paid' if r['paid'] else 'open'})"
        for r in rows
    )
    unpaid = [str(r["id"]) for r in rows if not r["paid"]]
    return [
        (f"Turn these lines into a JSON list:\n{lines}", json.dumps(rows, indent=rng.choice((None, 2)))),
        (
            "Which ones are still open?",
            "Open: " + ", ".join(unpaid) + "." if unpaid else "All of them are paid.",
        ),
    ]


def _table(rng: random.Random) -> _Turns:
    rows = [(food, rng.randint(1, 90), rng.randint(1, 90)) for food in rng.sample(FOODS, rng.randint(3, 6))]
    csv = "\n".join(["item,may,june", *(f"{food},{may},{june}" for food, may, june in rows)])
    table = "\n".join(
        ["| item | May | June |", "|---|---:|---:|", *(f"| {f} | {a} | {b} |" for f, a, b in rows)]
    )
    most = max(rows, key=lambda row: abs(row[2] - row[1]))
    return [
        (f"Make a Markdown table of this:\n```\n{csv}\n```", table),
        (
            "Which item changed the most?",
            f"{most[0].capitalize()}: from {most[1]} to {most[2]}, a change of {most[2] - most[1]}.",
        ),
    ]


_CODE = (
    ("Python", "adds up the {a} of every {b} above a limit",
     "def total_{a}({b}s, limit={n}):\n    # Sums the {a} of each {b} over the limit.\n    result = 0\n"
     "    for {b} in {b}s:\n        if {b}['{a}'] > limit:\n            result += {b}['{a}']\n"
     "    return result"),
    ("JavaScript", "groups each {b} by its {a}",
     "function groupBy{A}({b}s) {{\n  const groups = new Map();\n  for (const {b} of {b}s) {{\n"
     "    const key = {b}.{a} ?? {n};\n    if (!groups.has(key)) groups.set(key, []);\n"
     "    groups.get(key).push({b});\n  }}\n  return groups;\n}}"),
    ("SQL", "lists the {n} rows of {b} with the highest {a}",
     "SELECT id, {a}\nFROM {b}\nWHERE {a} IS NOT NULL\nORDER BY {a} DESC\nLIMIT {n};"),
    ("C", "finds the largest {a} in an array",
     "int largest_{a}(const int *{a}s, int count) {{\n    int best = {a}s[0];\n"
     "    for (int i = 1; i < count; i++) {{\n        if ({a}s[i] > best)\n            best = {a}s[i];\n"
     "    }}\n    return best;\n}}"),
    ("shell", "counts the lines with {a} in every file of the folder {b}",
     "for file in {b}/*.txt; do\n    printf '%s: ' \"$file\"\n"
     "    grep -c '{a}' \"$file\"\ndone | sort | head -n {n}"),
    ("HTML", "shows the {a} of a {b}",
     "<section class=\"{b}\">\n  <h2>{A}</h2>\n  <p>There are <strong>{n}</strong> left.</p>\n</section>"),
)  # fmt: skip


def _code(rng: random.Random) -> _Turns:
    language, what, code = rng.choice(_CODE)
    a = rng.choice(("price", "weight", "score", "height", "speed", "stock"))
    slots = {
        "a": a,
        "A": a.capitalize(),
        "b": rng.choice(("ticket", "parcel", "runner", "plant")),
        "n": rng.randint(2, 99),
    }
    return [
        (
            f"Write {language} code that {what.format(**slots)}.",
            f"```{language.lower()}\n{code.format(**slots)}\n```",
        ),
        (
            "What happens when there is nothing to read?",
            rng.choice(
                (
                    "Then it has nothing to work on; check for that before you call it.",
                    "Nothing is printed and nothing breaks, but a clear message would be kinder.",
                )
            ),
        ),
    ]


# Questions and answers in other languages; the slots are digits and names, so that the grammar stays right.
_LANGUAGES = (
    ("Wann öffnet die Bücherei am Samstag?",
     "Am Samstag öffnet die Bücherei um {hour} Uhr und schließt um {hour2} Uhr."),
    ("Wie komme ich vom Bahnhof zum Hafen?",
     "Nehmen Sie die Linie {n}. Die Fahrt dauert etwa {n} Minuten, danach gehen Sie über die Brücke"
     " und immer am Wasser entlang."),
    ("À quelle heure part le dernier train ?",
     "Le dernier train part à {hour2} h {minute:02d}, voie {small}. Pensez à valider votre billet"
     " avant de monter."),
    ("Que faut-il pour la soupe ?",
     "Il faut {n} carottes, un oignon, du sel et un litre d'eau ; laissez cuire à feu doux."),
    ("¿Dónde está la farmacia más cercana?",
     "La farmacia está en la calle Mayor, número {n}, al lado del mercado; abre a las {hour} de la"
     " mañana."),
    ("¿Cuánto cuesta la entrada?",
     "La entrada cuesta {price} euros; los niños pagan la mitad y los jueves es gratis."),
    ("Quanto dura il viaggio in traghetto?",
     "Il viaggio dura circa {n} minuti, ma con il mare mosso può durare di più."),
    ("Que horas são em Lisboa?",
     "Agora são {hour} horas e {minute} minutos; o escritório só abre depois do almoço."),
    ("Hoe laat begint de vergadering?",
     "De vergadering begint om {hour}.{minute:02d} uur in zaal {small}; neem de notulen van vorige"
     " week mee."),
    ("Gdzie jest najbliższy przystanek?",
     "Przystanek jest za rogiem, przy ulicy Leśnej {n}. Autobus jedzie co {small} minut."),
    ("Vad kostar biljetten?", "Biljetten kostar {n} kronor och gäller hela dagen."),
    ("Во сколько открывается музей?",
     "Музей открывается в {hour} часов, а касса закрывается в {hour2}:{minute:02d}."),
    ("Müze bugün açık mı?", "Evet, müze bugün saat {hour} ile {hour2} arasında açık; bilet {n} lira."),
    ("图书馆几点开门？", "图书馆早上{hour}点开门，晚上八点关门，星期一休息。"),
    ("駅まで何分かかりますか。", "歩いて{n}分ほどかかります。バスなら{small}分で着きます。"),
    ("도서관은 몇 시에 문을 열어요?", "도서관은 오전 {hour}시에 열고 저녁 여덟 시에 닫습니다."),
    ("متى يفتح المتحف؟", "يفتح المتحف الساعة {hour} صباحًا ويغلق في المساء."),
    ("पुस्तकालय कब खुलता है?", "पुस्तकालय सुबह {hour} बजे खुलता है और शाम को बंद होता है।"),
)  # fmt: skip


def _languages(rng: random.Random) -> _Turns:
    w = words(rng)
    turns = [(question, answer.format(**w)) for question, answer in rng.sample(_LANGUAGES, rng.randint(2, 3))]
    if rng.random() < 0.5:
        question, answer = turns[-1]
        turns[-1] = (f"Answer this politely, in the language it is written in: {question}", answer)
    return turns


def _talk(rng: random.Random) -> _Turns:
    w = words(rng)
    return [
        (
            "Can I borrow a {thing} from the {place}?".format(**w),
            "Yes. Ask for {name} at the desk before {hour}:{minute:02d}, and bring a letter with your"
            " address on it. ".format(**w)
            + paragraph(rng, 2),
        ),
        ("What if I return it late?", "Each day costs {small} euros. ".format(**w) + paragraph(rng, 1)),
        (
            "Thanks! Where else could I ask?",
            "Try the {place2}; {name2} usually keeps a {quality} one.".format(**w),
        ),
    ][: rng.randint(2, 3)]


_KINDS: tuple[Callable[[random.Random], _Turns], ...] = (
    _letter, _summary, _steps, _sums, _records, _table, _code, _code, _languages, _languages, _talk,
)  # fmt: skip
