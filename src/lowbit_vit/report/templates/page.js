// Replace each static drawing by the interactive one, as wide as the page. Without scripts the static ones stay.
const specifications = JSON.parse(document.getElementById("specifications").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

// Every panel of a figure takes the same plot width.
function setWidth(specification, width) {
  for (const panel of specification.vconcat ?? [specification.spec]) panel.width = width;
}

function widthOf(specification) {
  return (specification.vconcat ? specification.vconcat[0] : specification.spec).width;
}

// Axes, labels and numbers beside bars take what they take: draw, see what is left over, draw again.
async function drawFigure(place) {
  const specification = structuredClone(specifications[place.dataset.figure]);
  const options = { actions: false, renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" } };
  const room = Math.min(place.parentElement.clientWidth, 860);
  const target = document.createElement("div");
  place.replaceChildren(target);
  for (let round = 0; round < 4; round += 1) {
    await vegaEmbed(target, specification, options);
    const left = room - target.querySelector("svg").getBoundingClientRect().width;
    if (round > 0 && left >= 0 && left < 8) break;
    setWidth(specification, Math.max(120, Math.floor(widthOf(specification) + left)));
  }
}

async function drawAll() {
  for (const place of document.querySelectorAll(".plot")) await drawFigure(place);
  document.documentElement.dataset.drawn = "yes";
}

let lastWidth = window.innerWidth;
let timer;
window.addEventListener("resize", () => {
  if (window.innerWidth === lastWidth) return;
  lastWidth = window.innerWidth;
  clearTimeout(timer);
  timer = setTimeout(drawAll, 150);
});
dark.addEventListener("change", drawAll);
drawAll();
