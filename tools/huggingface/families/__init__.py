"""The families that can be imported and exported, by their `model_type`."""

from tools.huggingface.families import bert, gpt2, llama, neox, t5
from tools.huggingface.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for module in (bert, gpt2, neox, llama, t5)
    for family in module.FAMILIES
}
