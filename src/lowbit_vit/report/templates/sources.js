// What stands behind a number. A short reason on hover and focus; on click, tap or Enter the records, in a dialog.
const known = JSON.parse(document.getElementById("records").textContent);
const tip = document.getElementById("tip");
const dialog = document.getElementById("source");
const MOST_RECORDS = 12;

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function list(pairs) {
  const made = element("dl", null);
  for (const [name, value] of pairs) {
    const held = element("dd", value === null ? "unknown" : value);
    if (value === null) held.className = "absent";
    made.append(element("dt", name), held);
  }
  return made;
}

function recordEntry(place) {
  const [id, [study, seed, status, started, ...places]] = known.entries[place];
  const [label, command, host, code, data, weights] = places.map((at, kind) => (at === null ? null : known.shared[known.kinds[kind]][at]));
  const made = element("section", null);
  made.append(element("h3", label));
  const where = element("p", null);
  const file = known.packed ? "records/trials.parquet" : `records/${study}/${id}.json`;
  where.append(element("a", id, { href: file }), ` ${study}, seed ${seed}, ${status}`);
  made.append(where, list([["made", started], ["command", command], ["code sha256", code], ["images sha256", data], ["weights sha256", weights], ...(host ?? [["host", null]])]));
  return made;
}

function showSource(records, told, claim) {
  const body = document.getElementById("source-body");
  body.replaceChildren(...told.map((sentence) => element("p", sentence)));
  if (claim !== null) {
    const link = element("a", "The statement in the ledger", { href: `#claim-${claim}` });
    link.addEventListener("click", () => dialog.close());
    body.append(link);
  }
  const places = records.split(" ").filter(Boolean);
  body.append(...places.slice(0, MOST_RECORDS).map(recordEntry));
  if (places.length > MOST_RECORDS) body.append(element("p", `and ${places.length - MOST_RECORDS} more records`));
  if (places.length === 0) body.append(element("p", "No record of ours stands behind this.", { class: "absent" }));
  tip.hidden = true;
  dialog.showModal();
  dialog.scrollTop = 0;
}

function toldOf(button) {
  const words = button.dataset.told && document.getElementById(button.dataset.told);
  return words ? [...words.children].map((sentence) => sentence.textContent) : [];
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-records]") ?? event.target.closest("tbody tr")?.querySelector("button.source");
  if (button) showSource(button.dataset.records, toldOf(button), button.dataset.claim ?? null);
  else if (event.target === dialog) dialog.close();
});

function showTip(button) {
  tip.replaceChildren(...toldOf(button).map((sentence) => element("p", sentence)));
  tip.hidden = false;
  const at = button.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
  const below = at.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? at.bottom + 4 : Math.max(4, at.top - tip.offsetHeight - 4)}px`;
}

// The tip stays while the pointer is on it, and goes with Escape.
let leaving;
document.addEventListener("pointerover", (event) => {
  clearTimeout(leaving);
  const button = event.pointerType === "mouse" ? event.target.closest("[data-told]") : null;
  if (button) showTip(button);
  else if (!tip.contains(event.target)) leaving = setTimeout(() => { tip.hidden = true; }, 120);
});
document.addEventListener("focusin", (event) => {
  const button = event.target.closest("[data-told]");
  if (button && button.matches(":focus-visible")) showTip(button);
  else tip.hidden = true;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") tip.hidden = true;
});
document.addEventListener("scroll", () => { tip.hidden = true; }, { capture: true, passive: true });
