"""The 80 classes of COCO, and which words name them."""

from __future__ import annotations

import re

_NAMES = """person people man men woman women boy girl child children kid baby; bicycle bike; car;
motorcycle motorbike motor_bike; airplane plane aeroplane; bus; train; truck; boat; traffic_light;
fire_hydrant; stop_sign; parking_meter; bench; bird; cat kitten; dog puppy; horse; sheep; cow;
elephant; bear; zebra; giraffe; backpack; umbrella; handbag; tie; suitcase; frisbee; skis ski;
snowboard; sports_ball; kite; baseball_bat; baseball_glove; skateboard; surfboard; tennis_racket;
bottle; wine_glass; cup; fork; knife knives; spoon; bowl; banana; apple; sandwich; orange; broccoli;
carrot; hot_dog; pizza; donut doughnut; cake; chair; couch sofa; potted_plant; bed; dining_table;
toilet; tv television; laptop; mouse mice; remote; keyboard; cell_phone cellphone phone; microwave;
oven; toaster; sink; refrigerator fridge; book; clock; vase; scissors; teddy_bear;
hair_drier hair_dryer; toothbrush"""  # a class, then other words for it
_CLASSES = {
    name.replace("_", " "): names.split()[0].replace("_", " ")
    for names in _NAMES.split(";")
    for name in names.split()
}


def class_of(word: str) -> str | None:
    """The COCO class that a word names: its own name, one of a few synonyms, or their plural.

    It goes by spelling alone: "orange" is the fruit, whatever the prompt means by it.

    >>> class_of("Buses"), class_of("women"), class_of("puppies"), class_of("house")
    ('bus', 'person', 'dog', None)
    """
    text = " ".join(word.casefold().split())
    singular = re.sub(r"ies$", "y", re.sub(r"(ch|sh|s)es$", r"\1", text))
    forms = (text, text.removesuffix("s"), singular)
    return next((_CLASSES[form] for form in forms if form in _CLASSES), None)
