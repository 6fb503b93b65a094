"""What the demo can show, by name: a world is data, and one driver takes each to its report.

    digits      three networks, trained on the handwritten digits that come with the package
    cifar10     pretrained ResNets on CIFAR-10 images, or networks trained on them, from a folder
    services    recorded answers of services and what each cost; made up, or from a folder
    languages   live language detectors of other packages; texts of the package, or from a folder

Layer: project.
"""

from offramp._core.registry import Registry
from offramp.project.worlds.cifar10 import CIFAR10
from offramp.project.worlds.digits import DIGITS
from offramp.project.worlds.languages import LANGUAGES
from offramp.project.worlds.services import SERVICES
from offramp.project.worlds.world import World

#: By name.
WORLDS: Registry[World] = Registry(
    "world", {world.name: world for world in (DIGITS, CIFAR10, SERVICES, LANGUAGES)}
)
