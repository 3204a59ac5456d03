"""Stock pipelines with tiny random components, and what each must show when transformed."""

from diffusers.utils import is_transformers_available

if not is_transformers_available():
    raise ImportError(
        'stock pipelines have text encoders of transformers: pip install "dqar_fx[pipelines]"'
    )
