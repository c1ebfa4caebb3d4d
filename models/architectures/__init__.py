"""Multi-task networks, by the name that a scenario gives in `model.architecture`."""

from models.architectures.layers import Architecture
from models.architectures.mmoe import MMoE
from models.architectures.shared_bottom import SharedBottom

ARCHITECTURES: dict[str, type[Architecture]] = {"shared_bottom": SharedBottom, "mmoe": MMoE}
