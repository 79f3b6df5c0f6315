"""Hooks of mkdocs: pages that lie outside of docs/, and links between them that hold on the site as in the repository."""

import pathlib
import posixpath
import re

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
# files of the repository that are pages of the site, at the same paths there
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "launch/README.md",
    "notebooks/quickstart.ipynb",
    "notebooks/your_own_task.ipynb",
)
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
PICTURE = re.compile(r'<img [^>]*src="([^"]+)"[^>]*>(?!</a>)')
MATHJAX = re.compile(r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", re.DOTALL | re.IGNORECASE)
FOREIGN = re.compile(
    r"<(?:script|img|iframe|source|link rel=\"?(?:stylesheet|preconnect))[^>]*?((?:https?:)?//[^\s\">]+)"
)


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files, config):
    """Add the pages that lie outside of docs/."""
    for path in OUTSIDE:
        files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point the links of a page at where mkdocs has the files that they name in the repository."""
    folder, docs = pathlib.Path(page.file.abs_src_path).parent, pathlib.Path(config.docs_dir)

    def rewrite(match: re.Match) -> str:
        opening, target, closing = match.groups()
        path = pathlib.Path(posixpath.normpath((folder / target).as_posix()))
        place = path.relative_to(docs if path.is_relative_to(docs) else ROOT).as_posix()
        if files.get_file_from_path(place) is None:
            return match.group()  # mkdocs says that it is not there
        return f"{opening}{posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{closing}"

    return LINK.sub(rewrite, markdown)


def on_page_content(html, page, config, files):
    """Let pictures be opened in full size, and leave out nbconvert's renderer of formulas: it is another server's."""
    return PICTURE.sub(r'<a href="\1">\g<0></a>', MATHJAX.sub("", html))


def on_post_page(output, page, config):
    """Refuse a page that asks another server for a script, a style, a font or a picture."""
    if found := FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri} loads {found.group(1)} from another server; it is to be read offline")
    return output
