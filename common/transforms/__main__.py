"""The command line for transform files: python -m common.transforms show | preview | convert."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from common.cli.command import command
from common.errors import UsageError, WorkError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def _parser() -> _Parser:
    parser = _Parser(prog="python -m common.transforms", description="Look at and convert transform files.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="show | preview | convert")
    show = commands.add_parser("show", help="say in words what a file does", allow_abbrev=False)
    show.add_argument("file", metavar="FILE", help="transform file; a bare name is looked up in transforms/")
    preview = commands.add_parser("preview", help="draw pictures before and after", allow_abbrev=False)
    preview.add_argument("file", metavar="FILE", help="transform file; a bare name is looked up in transforms/")
    preview.add_argument(
        "--dataset", required=True, help="folder of a preprocessed dataset, or its name below input/datasets"
    )
    preview.add_argument("--output", type=Path, required=True, metavar="PNG", help="picture to write")
    preview.add_argument("--images", type=_count, default=4, metavar="N", help="images of the dataset (default: 4)")
    preview.add_argument("--views", type=_count, default=4, metavar="N", help="draws of each image (default: 4)")
    preview.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: 0)")
    preview.add_argument("--fuse", action="store_true", help="draw as with --data_transform_fuse=1")
    convert = commands.add_parser("convert", help="write an old file in today's form", allow_abbrev=False)
    convert.add_argument("old", metavar="OLD", help="transform file of albumentations 0.3 to 0.5")
    convert.add_argument("new", type=Path, metavar="NEW", help="file to write, for albumentations 2")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100")
    return int(text)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the three commands."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    {"show": _show, "preview": _preview, "convert": _convert}[arguments.command](arguments)


def _show(arguments: argparse.Namespace) -> None:
    from common.transforms.describe import describe
    from common.transforms.documents import find_transform
    from common.transforms.pipeline import load_pipeline

    path = find_transform(arguments.file)
    print(f"{path}\n{describe(load_pipeline(path))}")


def _preview(arguments: argparse.Namespace) -> None:
    import cv2

    from common.files import atomic_path
    from common.transforms.documents import find_transform
    from common.transforms.preview import contact_sheet

    if arguments.output.suffix.lower() != ".png":
        raise UsageError(f"--output={arguments.output}: the sheet is a PNG; give a name that ends in .png")
    if not arguments.output.absolute().parent.is_dir():
        raise UsageError(f"--output={arguments.output}: its folder does not exist")
    path = find_transform(arguments.file)
    sheet = contact_sheet(
        path, arguments.dataset, arguments.images, arguments.views, arguments.seed, fuse=arguments.fuse
    )
    _, content = cv2.imencode(".png", sheet)
    with atomic_path(arguments.output) as temporary:
        temporary.write_bytes(content.tobytes())
    print(arguments.output)


def _convert(arguments: argparse.Namespace) -> None:
    from common.files import write_json
    from common.transforms.documents import find_transform, read_document
    from common.transforms.pipeline import pipeline_from_dict

    path = find_transform(arguments.old)
    if not arguments.new.absolute().parent.is_dir():
        raise UsageError(f"{arguments.new}: its folder does not exist")
    if arguments.new.exists():
        raise UsageError(f"{arguments.new}: exists already; give another name")
    try:
        document = pipeline_from_dict(read_document(path), str(path)).document
    except UsageError as error:
        raise WorkError(str(error)) from None
    write_json(arguments.new, document)
    print(arguments.new)


if __name__ == "__main__":
    main()
