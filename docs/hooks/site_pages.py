"""Pages of the site that are made when it is built: the README, the changes, the examples and the references.

Links of the repository's own pages lead to files, as on its web view; here they are turned towards pages of the site.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from command_reference import command_page
from configuration_reference import configuration_page
from file_reference import PARTS
from mkdocs.structure.files import File, Files
from notebook_page import notebook_page
from python_reference import python_page

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "examples": "examples/index.md",
    "CITATION.cff": "CITATION.cff",
}
"""Files of the repository outside `docs`, and the pages that show them."""
REFERENCES = {
    "reference/configuration.md": configuration_page,
    "reference/commands.md": command_page,
    "reference/python.md": python_page,
}
"""Pages that are made from code."""
NOTEBOOK = "notebook.md"
LINK = re.compile(r"\[([^\[\]]*)\]\((?!https?:|#)([^)#\s]*)(#[^)\s]*)?\)")
"""Text, target and anchor of a link within the repository."""


def page_of(path: str) -> str | None:
    """Return the page, or file, of the site that shows a file of the repository; None where there is none."""
    if path.startswith("examples/") and path.endswith(".py"):
        return path.removesuffix(".py") + ".md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path)


def with_links_of_the_site(text: str, source: str, page: str) -> str:
    """Return Markdown whose relative links, which lead from a file of the repository, lead from a page of the site.

    Args:
        text: Markdown.
        source: path of its file in the repository.
        page: path of its page in the site.
    """

    def turned(match: re.Match[str]) -> str:
        text, path, anchor = match[1], match[2], match[3] or ""
        target = normpath((PurePosixPath(source).parent / path).as_posix())
        shown = page_of(target)
        if shown is None:
            return match[0]  # MkDocs warns of it, which ends the build
        if text == path and target.endswith(".md"):
            text = title_of(ROOT / target)
        return f"[{text}]({relpath(shown, PurePosixPath(page).parent.as_posix() or '.')}{anchor})"

    return LINK.sub(turned, text)


def title_of(path: Path) -> str:
    """Return the first heading of a page of the repository, which takes the place of its path as the text of a link."""
    match = re.search(r"^# (.*)$", path.read_text(encoding="utf-8"), re.M) if path.is_file() else None
    return match[1] if match else path.name


def examples() -> list[Path]:
    """Return the scripts among the examples."""
    return sorted((ROOT / "examples").glob("*.py"))


def first_sentence(script: Path) -> str:
    """Return the first sentence of a script's docstring."""
    return (
        re.split(r"(?<=[.:])\s", script.read_text(encoding="utf-8").removeprefix('"""'))[0].rstrip(":.").rstrip() + "."
    )


def example_page(script: Path) -> str:
    """Return the page of a script of the examples."""
    source = script.read_text(encoding="utf-8").rstrip()
    return f"# {script.name}\n\n`python examples/{script.name}`\n\n````python\n{source}\n````\n"


def generated_pages() -> dict[str, str]:
    """Return the Markdown of each page that is made, by its path in the site."""
    scripts = examples()
    listed = [f"- [{script.name}]({script.stem}.md): {first_sentence(script)}" for script in scripts]
    pages = {path: make() for path, make in REFERENCES.items()}
    pages |= {f"examples/{script.stem}.md": example_page(script) for script in scripts}
    pages["examples/index.md"] = "\n".join(["# Examples", "", "Scripts of a few seconds each.", "", *listed, ""])
    for source in ("README.md", "CHANGELOG.md"):
        text = (ROOT / source).read_text(encoding="utf-8")
        pages[PAGES[source]] = with_links_of_the_site(text, source, PAGES[source])
    pages["CITATION.cff"] = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    return pages


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are made; MkDocs calls it."""
    page, pictures = notebook_page(execute=config.extra["execute_notebook"])
    for path, content in {**generated_pages(), NOTEBOOK: page, **pictures}.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn the links of a page that lies in `docs`; MkDocs calls it."""
    if page.file.src_uri in generated_paths():
        return markdown
    markdown = re.sub(
        r"<!-- made: (\w+) -->\n.*?<!-- end -->\n", lambda part: PARTS[part[1]]() + "\n", markdown, flags=re.S
    )
    return with_links_of_the_site(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def generated_paths() -> set[str]:
    """Return the paths of the pages that are made."""
    return {NOTEBOOK, *PAGES.values(), *REFERENCES, *(f"examples/{script.stem}.md" for script in examples())}
