"""Multi-task networks, by the name that a scenario gives in `model.architecture`."""

from models.architectures.dcnv2 import DCNv2
from models.architectures.deepfm import DeepFM
from models.architectures.dlrm import DLRM
from models.architectures.layers import Architecture
from models.architectures.mmoe import MMoE
from models.architectures.shared_bottom import SharedBottom

ARCHITECTURES: dict[str, type[Architecture]] = {
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "deepfm": DeepFM,
    "dcnv2": DCNv2,
    "dlrm": DLRM,
}
