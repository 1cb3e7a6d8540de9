"""The families of attention blocks that headkit knows, one a file."""

from headkit.huggingface.adapter import Adapter
from headkit.huggingface.families.albert import Albert
from headkit.huggingface.families.bart import Bart
from headkit.huggingface.families.bert import Bert
from headkit.huggingface.families.clip import Clip
from headkit.huggingface.families.distilbert import DistilBert
from headkit.huggingface.families.gpt2 import Gpt2
from headkit.huggingface.families.llama import Llama
from headkit.huggingface.families.modernbert import ModernBert
from headkit.huggingface.families.rotary_encoder import RotaryEncoder
from headkit.huggingface.families.t5 import T5
from headkit.huggingface.families.timm_vit import TimmVit
from headkit.huggingface.families.torch_attention import TorchAttention
from headkit.huggingface.families.vit import Vit
from headkit.huggingface.families.wav2vec2 import Wav2Vec2

#: In the order in which they are tried.
ADAPTERS: tuple[Adapter, ...] = (
    Albert(),
    Bart(),
    Bert(),
    Clip(),
    DistilBert(),
    Gpt2(),
    Llama(),
    ModernBert(),
    RotaryEncoder(),
    T5(),
    TimmVit(),
    TorchAttention(),
    Vit(),
    Wav2Vec2(),
)


def supported() -> list[str]:
    """The architectures that ``attach`` takes."""
    return [name for adapter in ADAPTERS for name in adapter.NAMES]
