"""``python -m attile``: versions, CPU, kernels and threads; ``--json`` for programs."""

import argparse
import json

from attile.config import config_text, show_config


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m attile", description="Report what this installation of attile is made of.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    config = show_config()
    print(json.dumps(config, indent=2) if parser.parse_args().json else config_text(config))


if __name__ == "__main__":
    main()
