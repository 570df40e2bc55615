// The ledger's filters, and what opens by itself: the claim that an address names, and everything before printing.
const entries = [...document.querySelectorAll("#claims > .claim")];
const byVerdict = document.getElementById("by-verdict");
const bySection = document.getElementById("by-section");
const byWords = document.getElementById("by-words");

function filterClaims() {
  const words = byWords.value.trim().toLowerCase();
  let count = 0;
  for (const entry of entries) {
    const fits =
      (!byVerdict.value || entry.dataset.verdict === byVerdict.value) &&
      (!bySection.value || entry.dataset.section === bySection.value) &&
      (!words || entry.textContent.toLowerCase().includes(words));
    entry.hidden = !fits;
    count += fits;
  }
  document.getElementById("shown").textContent = `${count} of ${entries.length} statements`;
}

if (byVerdict) {
  const form = byVerdict.form;
  form.addEventListener("input", filterClaims);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filterClaims));
  for (const link of document.querySelectorAll("[data-filter]")) {
    link.addEventListener("click", () => {
      form.reset();
      byVerdict.value = link.dataset.filter;
      setTimeout(filterClaims, 1);
    });
  }
  // A reload keeps what a reader chose.
  filterClaims();
}

function openNamed() {
  const named = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!named) return;
  if (named.hidden) {
    byVerdict.form.reset();
    filterClaims();
  }
  if (named.matches("details")) named.open = true;
  named.scrollIntoView();
}
window.addEventListener("hashchange", openNamed);
openNamed();

const closed = [];
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not([open])")) {
    part.open = true;
    closed.push(part);
  }
});
window.addEventListener("afterprint", () => {
  while (closed.length) closed.pop().open = false;
});
