"""Write charts, pictures, tables and the page of errors: `make charts`."""

from __future__ import annotations

from docs.generate.architecture import write_architecture
from docs.generate.charts import write_charts
from docs.generate.pages import filled, pages
from docs.generate.sources import ROOT
from docs.generate.terminal import write_pictures
from docs.generate.troubleshooting import PAGE, make_page


def main() -> None:
    """Write what is made from committed files."""
    images = ROOT / "docs" / "images"
    write_charts(images)
    write_architecture(images)
    write_pictures(images)
    PAGE.write_text(make_page(), "utf-8")
    for page in pages():
        text = filled(page)
        if text != page.read_text("utf-8"):
            page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
