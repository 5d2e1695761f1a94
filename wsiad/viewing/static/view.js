// The page of `wsiad view`: everything in level-0 pixels of the slide that is shown.
import { createReview } from "./review.js";

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const state = { slides: [], slide: null, place: 0, scores: null, heat: null, opening: 0, loading: 0,
  pointer: null, chosen: -1, readOnly: "" };

// Text only ever becomes text: names of slides are from elsewhere.
const element = (tag, values = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
};
const drawn = (tag, attributes, parent) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
};
const digits = (value, count = 4) => (Number.isFinite(value) ? Number(value.toPrecision(count)).toString().replaceAll("-", "−") : "–");
const area = (um2) => (um2 < 1e5 ? `${Math.round(um2).toLocaleString("en")} µm²` : `${digits(um2 / 1e6)} mm²`);

const viewer = OpenSeadragon({
  element: byId("viewer"),
  drawer: "canvas",
  showNavigationControl: false,
  showNavigator: true,
  navigatorPosition: "TOP_RIGHT",
  navigatorAutoFade: false,
  navigatorOpacity: 1,
  autoHideControls: false,
  navigatorBackground: "#fff",
  navigatorBorderColor: "#566071",
  navigatorDisplayRegionColor: "#1f5fa8",
  animationTime: 0.4,
  maxZoomPixelRatio: 8,
  minZoomImageRatio: 0.6,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  crossOriginPolicy: false,
});
// Heatmap pixels are windows: their edges must not be smeared.
viewer.addHandler("tile-drawing", (event) => {
  event.context.imageSmoothingEnabled = event.tiledImage !== state.heat;
});
// Letters are this page's: the viewer would turn, mirror or move the slide by some of them.
viewer.addHandler("canvas-key", (event) => {
  if (/^\p{L}$/u.test(event.originalEvent.key)) event.preventDefaultAction = true;
});

viewer.addHandler("tile-load-failed", () => say("A part of the slide cannot be read; it may be damaged."));
viewer.addHandler("open-failed", () => say("The slide cannot be shown."));

const shapes = document.createElementNS(SVG, "svg");
shapes.setAttribute("class", "shapes");
shapes.setAttribute("aria-hidden", "true");
const world = drawn("g", {}, shapes);
viewer.canvas.append(shapes);

const base = () => viewer.world.getItemAt(0);
// Level 0 to pixels of the viewer. The first image covers the slide, or its bounds.
const placement = () => {
  const { width, origin } = state.slide.base;
  const left = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
  const right = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
  const scale = (right.x - left.x) / width;
  return { scale, x: left.x - origin.x * scale, y: left.y - origin.y * scale };
};
const toViewport = (box) => {
  const { width, origin } = state.slide.base;
  return new OpenSeadragon.Rect(
    (box.x - origin.x) / width, (box.y - origin.y) / width, box.width / width, box.height / width);
};

const follow = () => {
  if (!state.slide || !base()) return;
  const { scale, x, y } = placement();
  world.setAttribute("transform", `matrix(${scale} 0 0 ${scale} ${x} ${y})`);
  if (!state.slide.umPerPx) return;
  const perPixel = state.slide.umPerPx[0] / scale;
  const power = 10 ** Math.floor(Math.log10(150 * perPixel));
  const length = [5, 2, 1].map((step) => step * power).find((step) => step <= 150 * perPixel);
  byId("bar").style.width = `${length / perPixel}px`;
  byId("length").textContent = length < 1000 ? `${digits(length)} µm` : `${digits(length / 1000)} mm`;
};
for (const name of ["update-viewport", "open", "resize"]) viewer.addHandler(name, follow);
// The overview has the shape of the slide, not that of the window, whose side lists may leave little.
const sizeOverview = () => {
  if (!base()) return;
  const { x: width, y: height } = base().getContentSize();
  const { clientWidth: across, clientHeight: down } = viewer.container;
  const scale = Math.min(Math.min(192, 0.4 * across) / width, Math.min(144, 0.3 * down) / height);
  viewer.navigator.setWidth(Math.round(width * scale));
  viewer.navigator.setHeight(Math.round(height * scale));
};
for (const name of ["open", "resize"]) viewer.addHandler(name, sizeOverview);

const outline = (shape) => shape.rings.map((ring) => `M${ring.map((p) => p.join(" ")).join("L")}Z`).join("");
const drawShapes = () => {
  world.replaceChildren();
  for (const shape of state.slide.notAssessed) {
    const path = drawn("path", { class: "gap", d: outline(shape), "fill-rule": "evenodd" }, world);
    drawn("title", {}, path).textContent = shape.name;
  }
  for (const kind of ["halo", "line"])
    if (state.slide.truth?.rings.length) drawn("path", { class: `truth ${kind}`, d: outline(state.slide.truth) }, world);
  for (const shape of state.slide.earlier) drawn("path", { class: "earlier", d: outline(shape) }, world);
  state.slide.regions.forEach((shape, index) => {
    const group = drawn("g", { class: "region", "data-rank": index + 1 }, world);
    for (const kind of ["halo", "line"]) drawn("path", { class: kind, d: outline(shape) }, group);
  });
  showShapes();
};
const showShapes = () => {
  for (const path of world.querySelectorAll(".truth")) path.toggleAttribute("hidden", !byId("truth").checked);
  for (const path of world.querySelectorAll(".earlier")) path.toggleAttribute("hidden", !byId("outlines").checked);
  for (const path of world.querySelectorAll(".gap")) path.toggleAttribute("hidden", !byId("gaps").checked);
  for (const path of world.querySelectorAll(".region")) path.toggleAttribute("hidden", !byId("outlines").checked);
};
const showHeatmap = () => {
  const opacity = byId("heatmap").checked ? byId("opacity").value / 100 : 0;
  if (state.heat) state.heat.setOpacity(opacity);
};

// Regions are shown over the map that they come from, unless single windows are asked for.
const near = () => Boolean(state.slide?.neighbourhoods) && byId("near").checked;
const map = () => (near() ? state.slide.neighbourhoods : state.slide.heatmap);

const boxOf = (shape) => {
  const xs = shape.rings.flat().map((p) => p[0]);
  const ys = shape.rings.flat().map((p) => p[1]);
  const [x, y] = [Math.min(...xs), Math.min(...ys)];
  return { x, y, width: Math.max(...xs) - x, height: Math.max(...ys) - y };
};
const choose = (index, { go = true } = {}) => {
  const shape = state.slide.regions[index];
  state.chosen = index;
  if (go) {
    const box = boxOf(shape);
    const around = Math.max(box.width, box.height);
    viewer.viewport.fitBounds(toViewport({
      x: box.x - around / 2, y: box.y - around / 2, width: box.width + around, height: box.height + around }));
  }
  const buttons = [...byId("regions").querySelectorAll("button")];
  buttons.forEach((b, i) => b.setAttribute("aria-current", i === index));
  buttons[index].scrollIntoView({ block: "nearest" });
  [...world.querySelectorAll(".region")].forEach((g, i) => g.classList.toggle("chosen", i === index));
  review.show();
};
const step = (by) => {
  const count = state.slide?.regions.length;
  if (count) choose(state.chosen < 0 ? (by > 0 ? 0 : count - 1) : (state.chosen + by + count) % count);
};
const stepSlide = (by) => {
  for (let place = state.place + by; place >= 1 && place <= state.slides.length; place += by) {
    if (!state.slides[place - 1].viewable || byId("slides").children[place - 1].hidden) continue;
    open(place);
    byId("slides").children[place - 1].scrollIntoView({ block: "nearest" });
    return;
  }
};
// Where the mouse is on a region, a click chooses it, without a move of the slide.
const inside = (shape, x, y) => {
  let within = false;
  for (const ring of shape.rings) {
    ring.forEach(([x0, y0], i) => {
      const [x1, y1] = ring[(i + 1) % ring.length];
      if ((y0 > y) !== (y1 > y) && x < (x1 - x0) * (y - y0) / (y1 - y0) + x0) within = !within;
    });
  }
  return within;
};
viewer.addHandler("canvas-click", (event) => {
  if (!event.quick || !state.slide) return;
  const { scale, x, y } = placement();
  const found = state.slide.regions.findIndex((shape) => inside(shape, (event.position.x - x) / scale, (event.position.y - y) / scale));
  if (found >= 0) choose(found, { go: false });
});

const review = createReview(state, {
  regions: () => [...world.querySelectorAll(".region")],
  choose, open: (place) => open(place), say: (words) => say(words), leave: () => viewer.canvas.focus(),
});
const listRegions = () => {
  const p = { "wsiad: p (family-wise)": "p (any region of a healthy slide)", "wsiad: p": "p", "wsiad: q": "q" };
  byId("count").textContent = state.slide.heatmap
    ? `Regions (${state.slide.regions.length})` : `Not scored (${state.slide.status})`;
  byId("regions").replaceChildren(...state.slide.regions.map((shape, index) => {
    const measured = shape.measurements;
    const further = Object.entries(p)
      .filter(([name]) => Number.isFinite(measured[name]))
      .map(([name, word]) => `${word} ${digits(measured[name])}`);
    if ("wsiad: significant" in measured)
      further.push(measured["wsiad: significant"] ? "significant" : "not significant");
    const around = measured["wsiad: neighbourhood µm"];
    const unit = Number.isFinite(around) ? ` standard deviations, radius ${digits(around)} µm` : "";
    const words = [`percentile ${digits(measured["wsiad: percentile"])}`, area(measured["wsiad: area µm^2"]), ...further];
    const button = element("button", { type: "button", onclick: () => choose(index) },
      element("span", { className: "rank", textContent: `${index + 1}.` }),
      element("span", { className: "text", textContent: `Score ${digits(measured["wsiad: max score"])}${unit}` },
        element("span", { textContent: words.join(", ") }), element("span", { className: "mark" })));
    return element("li", {}, button);
  }));
};

const drawLegend = () => {
  const legend = byId("legend");
  legend.replaceChildren();
  legend.hidden = !map();
  if (legend.hidden) return;
  const steps = map().scale;
  const things = near() ? "neighbourhoods" : "windows";
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 240 58");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Colour scale: score, and share of healthy ${things} below it`);
  const gradient = drawn("linearGradient", { id: "colours" }, drawn("defs", {}, svg));
  const row = (texts, y) => {
    // Labels that would touch another are left out, but never the first and the last.
    const spans = texts.map((text, index) => {
      const wide = 6.4 * text.length;
      const left = Math.min(Math.max(240 * index / (steps.length - 1) - wide / 2, 0), 240 - wide);
      return [left, left + wide];
    });
    let end = -Infinity;
    texts.forEach((text, index) => {
      const last = index === texts.length - 1;
      if (!text || spans[index][0] < end + 3) return;
      if (index && !last && spans[index][1] + 3 > spans[texts.length - 1][0]) return;
      end = spans[index][1];
      const anchor = index === 0 ? "start" : last && texts.length === steps.length ? "end" : "middle";
      drawn("text", { x: 240 * index / (steps.length - 1), y, "text-anchor": anchor }, svg).textContent = text;
    });
  };
  steps.forEach((step, index) => {
    const at = index / (steps.length - 1);
    drawn("stop", { offset: at, "stop-color": `rgb(${step.rgba.slice(0, 3).join(" ")})` }, gradient);
  });
  row(steps.map((step) => digits(step.score, 3)), 31);
  row(steps.map((step) => (step.below ? `${Number((100 * step.below).toFixed(2))} %` : "")), 47);
  drawn("rect", { width: 240, height: 15, fill: "url(#colours)", stroke: "#566071" }, svg);
  legend.append(svg, `Score, and share of healthy ${things} with a lower score. The scale is the same for all slides.`);
};

const read = () => {
  if (!state.slide || !base() || !state.pointer) return;
  const corner = viewer.element.getBoundingClientRect();
  const { scale, x: left, y: top } = placement();
  const [x, y] = [(state.pointer.x - corner.left - left) / scale, (state.pointer.y - corner.top - top) / scale];
  const inside = x >= 0 && y >= 0 && x < state.slide.width && y < state.slide.height;
  let words = "not scored";
  if (map() && !state.scores) words = "loading";
  else if (state.scores?.problem) words = state.scores.problem;
  else if (state.scores && inside) {
    const { rectangle } = map();
    const column = Math.floor((x - rectangle.x) / rectangle.width * state.scores.width);
    const row = Math.floor((y - rectangle.y) / rectangle.height * state.scores.height);
    const within = column >= 0 && row >= 0 && column < state.scores.width && row < state.scores.height;
    const score = within ? state.scores.values[row * state.scores.width + column] : NaN;
    if (Number.isFinite(score)) words = near() ? `${digits(score)} standard deviations` : `score ${digits(score)}`;
  }
  byId("pointer").textContent = inside ? `${words} at x ${Math.floor(x)}, y ${Math.floor(y)}` : "outside the slide";
};
viewer.element.addEventListener("pointermove", (event) => {
  state.pointer = { x: event.clientX, y: event.clientY };
  read();
});

const loadScores = async (place, loading) => {
  const answer = await fetch(`slide/${place}/${near() ? "neighbourhoodscores" : "scores"}`);
  if (loading !== state.loading) return;
  if (!answer.ok) {
    state.scores = { problem: "scores cannot be read" };
    read();
    return;
  }
  const values = new Float32Array(await answer.arrayBuffer());
  if (loading !== state.loading) return;
  state.scores = { values, width: Number(answer.headers.get("X-Width")), height: Number(answer.headers.get("X-Height")) };
  read();
};

const loadMap = () => {
  const loading = ++state.loading;
  if (state.heat) viewer.world.removeItem(state.heat);
  Object.assign(state, { scores: null, heat: null });
  drawLegend();
  read();
  if (!map()) return;
  const box = toViewport(map().rectangle);
  viewer.addTiledImage({
    tileSource: { type: "image", url: `slide/${state.place}/${near() ? "neighbourhoods" : "heatmap"}`, buildPyramid: false },
    x: box.x, y: box.y, width: box.width,
    success: ({ item }) => {
      if (loading !== state.loading) {
        viewer.world.removeItem(item);
        return;
      }
      state.heat = item;
      showHeatmap();
    },
  });
  loadScores(state.place, loading);
};

const source = (place, slide) => {
  if (slide.problem) return { type: "image", url: `slide/${place}/picture` };
  return {
    width: slide.width, height: slide.height, tileSize: slide.tileSize, tileOverlap: slide.overlap,
    getTileUrl: (level, column, row) => `slide/${place}/tile/${level}/${column}/${row}`,
  };
};

const open = async (place) => {
  const opening = ++state.opening;
  const answer = await fetch(`slide/${place}/info`);
  if (opening !== state.opening) return;
  if (!answer.ok) {
    say(await answer.text());
    return;
  }
  const slide = await answer.json();
  // Its small picture shows the bounds of the slide; its own pixels are all of level 0.
  const whole = { x: 0, y: 0, width: slide.width, height: slide.height };
  const covered = slide.problem ? slide.bounds : whole;
  slide.base = { width: covered.width, origin: covered };
  state.loading += 1;
  Object.assign(state, { slide, place, scores: null, heat: null, chosen: -1 });
  byId("nearby").hidden = !slide.neighbourhoods;
  byId("truthshown").hidden = !slide.truth?.rings.length;
  say([slide.problem, slide.reviewProblem, slide.truth?.problem].filter(Boolean).join(" "));
  byId("name").textContent = slide.name;
  document.title = `${slide.name} – wsiad view`;
  byId("reported").hidden = !state.report;
  byId("reported").firstChild.href = `results/report.html#name=${encodeURIComponent(slide.name)}`;
  byId("facts").textContent = [
    slide.score === null ? `no score: ${slide.status}` : `${slide.rankedBy === "scan" ? "scan" : "highest"} score ${digits(slide.score)}`, slide.label,
    slide.truth?.told,
    `${slide.width} × ${slide.height} px`, slide.reason].filter(Boolean).join(" · ");
  [...byId("slides").querySelectorAll("button")].forEach((b, i) => b.setAttribute("aria-current", i + 1 === place));
  viewer.close();
  viewer.open({ tileSource: source(place, slide), x: 0, y: 0, width: 1 });
  viewer.addOnceHandler("open", () => {
    if (opening !== state.opening) return;
    viewer.viewport.fitBounds(toViewport(slide.bounds), true);
    if (document.activeElement === document.body) viewer.canvas.focus();
    loadMap();
  });
  drawShapes();
  listRegions();
  review.show();
  drawLegend();
  history.replaceState(null, "", `#${place}`);
};
const say = (words) => {
  byId("message").textContent = words;
  byId("message").hidden = !words;
};

const listSlides = () => {
  byId("slides").replaceChildren(...state.slides.map((slide, index) => {
    const picture = slide.thumbnail
      ? element("img", { src: `slide/${index + 1}/thumbnail`, alt: "", loading: "lazy" }) : element("span");
    const words = [slide.score === null ? slide.status : `${slide.rankedBy === "scan" ? "scan " : ""}score ${digits(slide.score)}`, slide.label].filter(Boolean);
    const button = element("button",
      { type: "button", disabled: !slide.viewable, title: slide.reason, onclick: () => open(index + 1) },
      element("span", { className: "rank", textContent: slide.rank === null ? "–" : `${slide.rank}.` }), picture,
      element("span", { className: "text", textContent: slide.name }, element("span", { textContent: words.join(", ") }),
        element("span", { className: "judged", textContent: slide.judged ? `${slide.judged} judged` : "" })));
    return element("li", {}, button);
  }));
};

byId("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  [...byId("slides").children].forEach((item, i) => {
    item.hidden = !`${state.slides[i].name} ${state.slides[i].label}`.toLowerCase().includes(wanted);
  });
});
byId("heatmap").addEventListener("change", showHeatmap);
byId("near").addEventListener("change", () => state.slide && base() && loadMap());
byId("opacity").addEventListener("input", showHeatmap);
const showMap = () => viewer.navigator.element.toggleAttribute("hidden", !byId("map").checked);
byId("map").addEventListener("change", showMap);
for (const id of ["outlines", "gaps", "truth"]) byId(id).addEventListener("change", showShapes);
byId("in").addEventListener("click", () => viewer.viewport.zoomBy(1.6));
byId("out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.6));
byId("whole").addEventListener("click", () => state.slide && viewer.viewport.fitBounds(toViewport(state.slide.bounds)));
const click = (id) => () => byId(id).click();
const opacity = (by) => () => {
  byId("opacity").value = Number(byId("opacity").value) + by;
  showHeatmap();
};
const keys = {
  h: click("heatmap"), m: click("near"), t: click("truth"), v: click("map"), o: click("outlines"), n: click("gaps"),
  "[": opacity(-10), "]": opacity(10), j: () => step(1), k: () => step(-1),
  pagedown: () => stepSlide(1), pageup: () => stepSlide(-1),
  a: () => review.toggle("accepted"), x: () => review.toggle("rejected"), u: review.undo,
  c: review.comment,
};
// The letter that a key prints, as it stands on the keyboard; where it prints none of the Latin
// alphabet, the one that a US keyboard has there.
const letter = (event) => {
  if (/^[ -~]$/.test(event.key) || event.key.length > 1) return event.key.toLowerCase();
  return { BracketLeft: "[", BracketRight: "]" }[event.code] ?? event.code.replace(/^Key/, "").toLowerCase();
};
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], input[type=text], textarea");
  // On some keyboards [ and ] are typed with AltGr, which Windows reports as Ctrl and Alt.
  const typed = event.getModifierState("AltGraph") && "[]".includes(event.key);
  if (typing || byId("ask").open || (!typed && (event.ctrlKey || event.altKey || event.metaKey))) return;
  const done = keys[letter(event)];
  if (!done || !state.slide || (event.repeat && /^[axuc]$/.test(letter(event)))) return;
  event.preventDefault();
  done();
});

// An address names a slide by its rank or by its name: `#3`, `#tumor_001`, `#name=3`.
const placeOf = (asked) => {
  let name = asked.replace(/^name=/, "");
  try { name = decodeURIComponent(name); } catch { /* as it is */ }
  const place = /^[0-9]+$/.test(asked) ? Number(asked) : state.slides.findIndex((s) => s.name === name) + 1;
  return state.slides[place - 1]?.viewable ? place : 0;
};
addEventListener("hashchange", () => {
  const place = placeOf(location.hash.slice(1));
  if (place && place !== state.place) open(place);
});
const start = async () => {
  const found = await (await fetch("slides.json")).json();
  state.slides = found.slides;
  state.readOnly = found.readOnly;
  review.start(found.reviewer);
  byId("readonly").hidden = !found.readOnly;
  byId("readonly").textContent = `Read only: no judgements are stored, as ${found.readOnly}.`;
  byId("title").textContent = found.title;
  state.report = found.report;
  for (const [there, page, words] of [[found.report, "report", "Report"], [found.contactSheet, "contact_sheet", "Strongest regions"]])
    if (there) byId("pages").append(element("a", { href: `results/${page}.html`, textContent: words }), " · ");
  listSlides();
  const place = placeOf(location.hash.slice(1)) || state.slides.findIndex((s) => s.viewable) + 1;
  if (place) await open(place);
  else say("No slide of these results can be shown.");
};
start();
