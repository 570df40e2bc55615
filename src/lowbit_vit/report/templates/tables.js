// Long tables by pages, and arrow keys in the paper's table, so that its cells are one stop of the Tab key.
const LINES = 50;

function pageTable(table) {
  const lines = [...table.tBodies[0].rows];
  if (lines.length <= LINES) return;
  const last = Math.ceil(lines.length / LINES) - 1;
  let page = 0;
  const back = element("button", "Previous", { type: "button" });
  const forth = element("button", "Next", { type: "button" });
  const shown = element("span", "", { role: "status" });
  function show(wanted) {
    page = Math.max(0, Math.min(last, wanted));
    lines.forEach((line, index) => line.classList.toggle("paged", Math.floor(index / LINES) !== page));
    shown.textContent = `rows ${page * LINES + 1} to ${Math.min(lines.length, (page + 1) * LINES)} of ${lines.length}`;
    back.disabled = page === 0;
    forth.disabled = page === last;
  }
  back.addEventListener("click", () => show(page - 1));
  forth.addEventListener("click", () => show(page + 1));
  const bar = element("div", null, { class: "pager" });
  bar.append(back, shown, forth);
  table.parentElement.after(bar);
  show(0);
}
document.querySelectorAll("table[data-paged]").forEach(pageTable);

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
for (const table of document.querySelectorAll("table[data-arrows]")) {
  const cells = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("button")]);
  cells.flat().forEach((button, index) => { button.tabIndex = index === 0 ? 0 : -1; });
  table.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    const row = cells.findIndex((line) => line.includes(event.target));
    if (!step || row < 0) return;
    event.preventDefault();
    const wanted = cells[row + step[0]]?.[cells[row].indexOf(event.target) + step[1]];
    if (!wanted) return;
    event.target.tabIndex = -1;
    wanted.tabIndex = 0;
    wanted.focus();
  });
}
document.documentElement.dataset.ready = "yes";
