// Every text of the page that is not wholly there: outside its drawing, ended by an ellipsis, over another text of its drawing, or beyond
// what its box shows. A table's own box scrolls.
() => {
  const faults = [];
  const beyond = (inner, outer) =>
    inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
  for (const drawing of document.querySelectorAll(".plot svg")) {
    const name = drawing.closest("figure").id;
    const sheet = drawing.getBoundingClientRect();
    const place = drawing.closest(".plot").getBoundingClientRect();
    if (beyond(sheet, { ...place.toJSON(), top: -1e9, bottom: 1e9 })) faults.push(`${name}: the drawing is wider than its place`);
    const texts = [...drawing.querySelectorAll("text")].filter((text) => text.textContent && text.getBoundingClientRect().width > 0);
    for (const text of texts) {
      if (Number(getComputedStyle(text).opacity) === 0) continue;
      if (text.textContent.includes("…")) faults.push(`${name}: shortened: ${text.textContent}`);
      if (beyond(text.getBoundingClientRect(), sheet)) faults.push(`${name}: cut: ${text.textContent}`);
    }
    const shown = texts.filter((text) => Number(getComputedStyle(text).opacity) > 0).map((text) => [text, text.getBoundingClientRect()]);
    for (const [index, [text, box]] of shown.entries()) {
      for (const [other, its] of shown.slice(index + 1)) {
        const across = Math.min(box.right, its.right) - Math.max(box.left, its.left);
        const down = Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top);
        if (across > 2 && down > 4) faults.push(`${name}: over each other: ${text.textContent} | ${other.textContent}`);
      }
    }
  }
  for (const element of document.querySelectorAll("main *, nav, nav *")) {
    if (element.closest("svg, .scroll, .unseen, .skip, [hidden]")) continue;
    const style = getComputedStyle(element);
    if (style.display === "inline") continue;
    if (element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0 && !element.closest("details:not([open])"))
      faults.push(`<${element.tagName.toLowerCase()} ${element.className}>: wider than its box: ${element.textContent.trim().slice(0, 60)}`);
  }
  return faults;
}
