"""A page of the report in a browser, for tests and for the README's screenshot."""

from pathlib import Path

from playwright.sync_api import Page

WIDTHS = {"desk": 1440, "tablet": 1024, "phone": 390}
CUT = (Path(__file__).parent / "page" / "cut.js").read_text(encoding="utf-8")


class Visit:
    """A page in a browser, and what it did that no report may do: messages, and requests that leave the file."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.messages: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(address)
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'")

    def draw_all(self) -> None:
        """Bring every figure near the screen once, until it is drawn."""
        for index in range(self.page.locator(".plot").count()):
            self.page.locator(".plot").nth(index).scroll_into_view_if_needed()
            self.page.wait_for_function(f"document.querySelectorAll('.plot')[{index}].dataset.drawn === 'yes'")

    @property
    def cut(self) -> list[str]:
        """What of the page's text is not wholly there, and what lies over it."""
        found: list[str] = self.page.evaluate(CUT)
        return found

    @property
    def outside(self) -> list[str]:
        """Addresses that are not the file itself nor made inside it."""
        return [address for address in self.requests if not address.startswith(("file:", "data:", "blob:"))]
