"""How the demo's questions and answers are worded."""

# Every template pairs a question with one answer, so that the phrasing of the answer follows from the
# question's and only the key is left to be seen.
Templates = tuple[tuple[str, str], ...]

COLOUR: Templates = (
    ("What colour is the {ref}?", "The {ref} is {key}."),
    ("What color is the {ref}?", "The {ref} is {key}."),
    ("What is the colour of the {ref}?", "The {ref} is {key}."),
    ("Which colour does the {ref} have?", "It is {key}."),
    ("Tell me the colour of the {ref}.", "It is {key}."),
    ("Name the colour of the {ref}.", "It is {key}."),
    ("The {ref}: which colour is it?", "It is {key}."),
)
SHAPE: Templates = (
    ("What shape is the {ref}?", "The {ref} is a {key}."),
    ("What is the shape of the {ref}?", "The {ref} is a {key}."),
    ("Which shape does the {ref} have?", "It is a {key}."),
    ("Tell me the shape of the {ref}.", "It is a {key}."),
    ("Name the shape of the {ref}.", "It is a {key}."),
    ("The {ref}: what shape is it?", "It is a {key}."),
)
COUNT: Templates = (
    ("How many {plural} are there?", "There {be} {key} {noun}."),
    ("How many {plural} are in the picture?", "There {be} {key} {noun}."),
    ("How many {plural} do you see?", "I see {key} {noun}."),
    ("How many {plural} can you find?", "I see {key} {noun}."),
    ("Count the {plural}.", "There {be} {key} {noun}."),
    ("Tell me how many {plural} there are.", "There {be} {key} {noun}."),
    ("What is the number of {plural}?", "There {be} {key} {noun}."),
)
COUNT_ALL: Templates = (
    ("How many shapes are there in all?", "There {be} {key} {noun}."),
    ("How many shapes are there altogether?", "There {be} {key} {noun}."),
    *COUNT,
)
POSITION: Templates = (
    ("What is {rel} the {ref}?", "{What}."),
    ("Which object is {rel} the {ref}?", "{What}."),
    ("What do you see {rel} the {ref}?", "I see {what}."),
    ("Look {rel} the {ref}. What is there?", "There is {what}."),
    ("Tell me what is {rel} the {ref}.", "{What}."),
    ("What can be found {rel} the {ref}?", "There is {what}."),
)
JSON: Templates = (
    ("Describe the {ref} as JSON.", "{key}"),
    ("Give me the {ref} as JSON.", "{key}"),
    ("Write the {ref} as a JSON object.", "{key}"),
    ("Shape and colour of the {ref}, as JSON.", "{key}"),
    ("Return JSON with the shape and colour of the {ref}.", "{key}"),
)
WORD: Templates = (
    ("What is the word?", 'The word is "{key}".'),
    ("Which word is shown?", 'The word is "{key}".'),
    ("Read the word.", 'The word is "{key}".'),
    ("What word do you see?", 'The word is "{key}".'),
    ("Tell me the word in the picture.", 'The word is "{key}".'),
)
NUMBER: Templates = (
    ("What is the number?", "The number is {key}."),
    ("Which number is shown?", "The number is {key}."),
    ("Read the number.", "The number is {key}."),
    ("What number do you see?", "The number is {key}."),
    ("Tell me the number in the picture.", "The number is {key}."),
)
SIGN: Templates = (  # asked only where the sign has a single row
    ("What does the sign say?", 'It says "{key}".'),
    ("What does it say?", 'It says "{key}".'),
    ("Read the sign.", 'It says "{key}".'),
    ("What is written here?", 'It says "{key}".'),
    ("Read the text in the picture.", 'It says "{key}".'),
)
HIGHEST: Templates = (
    ("Which bar is the highest?", "The {key} bar is the highest."),
    ("Which bar is the tallest?", "The {key} bar is the tallest."),
    ("What colour is the highest bar?", "The highest bar is {key}."),
    ("What colour is the tallest bar?", "The tallest bar is {key}."),
    ("Which bar has the largest value?", "The {key} bar has the largest value."),
)
VALUE: Templates = (
    ("What is the value of the {ref} bar?", "The {ref} bar is at {key}."),
    ("How high is the {ref} bar?", "The {ref} bar is at {key}."),
    ("What value does the {ref} bar have?", "The {ref} bar is at {key}."),
    ("Read the value of the {ref} bar.", "It is at {key}."),
    ("Tell me how high the {ref} bar is.", "It is at {key}."),
    ("At what value is the {ref} bar?", "It is at {key}."),
)
WHICH: Templates = (
    ("Which picture has the {ref}?", "The {key} picture."),
    ("Which picture shows the {ref}?", "The {key} picture."),
    ("Which of the two pictures has the {ref}?", "The {key} picture."),
    ("In which picture is the {ref}?", "It is in the {key} picture."),
    ("Find the {ref}. Which picture is it in?", "It is in the {key} picture."),
)
MORE: Templates = (
    ("Which picture has more shapes?", "The {key} picture has more shapes."),
    ("Which picture has more objects?", "The {key} picture has more objects."),
    ("Which of the two pictures has more shapes?", "The {key} picture has more shapes."),
    ("In which picture are more shapes?", "In the {key} picture."),
    ("Where are more shapes, in the first or in the second picture?", "In the {key} picture."),
)

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
}
SIDE_WORDS = {"left": "to its left", "right": "to its right", "above": "above it", "below": "below it"}
ORDINALS = ("first", "second")
