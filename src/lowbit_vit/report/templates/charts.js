// Replace each static drawing by the interactive one, as wide as the page, once it comes near the screen. Without scripts the
// static ones stay.
const specifications = JSON.parse(document.getElementById("specifications").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

// Every panel of a figure takes the same plot width.
function panelsOf(specification) {
  return specification.concat ?? [specification.spec ?? specification];
}

// Two panels beside each other, or as many as the figure asks for, where there is room; returns how many columns that makes.
function setColumns(specification, width) {
  const columns = width < 900 ? 1 : (specification.usermeta?.columns ?? 2);
  if (specification.vconcat) {
    specification.concat = specification.vconcat;
    delete specification.vconcat;
  } else if (specification.facet) {
    specification.facet = specification.facet.row;
  } else {
    return 1;
  }
  specification.columns = columns;
  return Math.min(columns, specification.concat?.length ?? columns);
}

// On a phone, long rows of a legend, or two legends beside each other, would be wider than the page and leave the panels nothing.
function withNarrowLegends(name) {
  const narrow = (key, value) => (key === "legend" && value ? { ...value, columns: 1 } : value);
  const specification = JSON.parse(JSON.stringify(specifications[name]), narrow);
  specification.config.legend.layout = { bottom: { direction: "vertical" } };
  return specification;
}

// What is left of the page's width beside the drawing.
function room(place, target) {
  return place.parentElement.clientWidth - Number(target.querySelector("svg").getAttribute("width"));
}

// Axes, labels and numbers beside bars take what they take: draw, see what is left over, draw again.
async function drawFigure(place) {
  place.dataset.drawn = "drawing";
  const width = place.parentElement.clientWidth;
  const specification = width < 500 ? withNarrowLegends(place.dataset.figure) : structuredClone(specifications[place.dataset.figure]);
  const options = { actions: false, renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" } };
  // Vega names every grid line to a screen reader; the figure's own name leads to its table.
  const target = document.createElement("div");
  target.ariaHidden = "true";
  place.replaceChildren(target);
  const columns = setColumns(specification, width);
  for (let round = 0; round < 3; round += 1) {
    const drawn = await vegaEmbed(target, specification, options);
    drawn.view.addEventListener("click", (event, item) => {
      if (item?.datum?.records) showSource(item.datum.records, [], null);
    });
    const left = room(place, target);
    if (round === 2 || (left >= 0 && left < 12)) break;
    for (const panel of panelsOf(specification)) panel.width = Math.max(110, Math.floor(panel.width + (left - 4) / columns));
  }
  place.dataset.drawn = "yes";
}

// A figure is drawn again where it is next seen.
let watcher;
function watchFigures() {
  watcher?.disconnect();
  watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        watcher.unobserve(entry.target);
        drawFigure(entry.target);
      }
    },
    { rootMargin: "400px" },
  );
  for (const place of document.querySelectorAll(".plot")) {
    // A drawing too large for the page is made at once: printing does not wait.
    if (place.querySelector("svg")) watcher.observe(place);
    else drawFigure(place);
  }
}

let lastWidth = window.innerWidth;
let timer;
window.addEventListener("resize", () => {
  if (window.innerWidth === lastWidth) return;
  lastWidth = window.innerWidth;
  clearTimeout(timer);
  timer = setTimeout(watchFigures, 150);
});
dark.addEventListener("change", watchFigures);
watchFigures();
