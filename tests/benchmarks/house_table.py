"""Sizes of the package: the table in docs/architecture.md.

python -m tests.benchmarks.house_table [CHECKOUT]
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    package = (Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT) / "rebasin_cli"
    texts = [path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))]
    lines = [len(text.splitlines()) for text in texts]
    classes: Counter[str] = Counter()
    public = documented = 0
    for text in texts:
        tree = ast.parse(text)
        classes.update(
            node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        )
        for node in tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                public += 1
                documented += ast.get_docstring(node) is not None
    print(f"modules: {len(lines)}, of {sum(lines)} lines; median {statistics.median(lines)}, largest {max(lines)}")
    print(f"modules under 50 lines: {sum(count < 50 for count in lines)}")
    print(f"class names in several modules: {sorted(name for name, count in classes.items() if count > 1)}")
    print(f"classes and functions with a docstring: {documented} of {public} ({100 * documented / public:.0f} %)")


if __name__ == "__main__":
    main()
