"use strict";

// What the page shows, and what its user does. The networks and the attack are in network.js.
(() => {
  const {Network, bytes, pgd, softmax} = anpvs;
  const content = JSON.parse(document.getElementById("content").textContent);
  const networks = content.networks.map((described) => new Network(described));
  const [height, width, channels] = networks[0].shape;
  const pixelsOfOne = height * width * channels;
  const testPixels = Float32Array.from(bytes(content.images.pixels), (byte) => byte / 255);
  const one = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll("article.network")];

  // The image under attack: {pixels, label: its right class, null if only the network says one}.
  let subject = null;
  // The attack on it: of each network {label, iterates: [{pixels, probabilities}], milliseconds}.
  let traces = [];
  // Counts what was started; a loop that finds another number ends.
  let started = 0;

  function testImage(number) {
    const start = number * pixelsOfOne;
    const pixels = testPixels.slice(start, start + pixelsOfOne);
    return {pixels, label: content.images.labels[number], number};
  }

  const largest = (values) => values.indexOf(Math.max(...values));
  const percent = (share) => `${(100 * share).toFixed(share > 0.0995 || share === 0 ? 0 : 1)} %`;
  const paint = () => new Promise((resolve) => { setTimeout(resolve); });

  // ---- The attacker ----

  const epsilon = () => content.epsilon * one("epsilon").value / 40;
  const steps = () => Number(one("steps").value);

  function epsilonText() {
    const value = epsilon();
    if (content.levels) return `${Number((255 * value).toFixed(1))}/255`;
    return String(Number(value.toPrecision(3)));
  }

  function attacker() {
    const stepSize = content.radii * epsilon() / steps();
    return {epsilon: epsilon(), stepSize, steps: steps(), norm: content.norm};
  }

  function traceOf(network, {pixels, label}) {
    const own = label ?? largest([...network.logits(network.images(pixels)).dataSync()]);
    return {label: own, iterates: [], milliseconds: 0, rest: pgd(network, pixels, [own], attacker())};
  }

  // Takes the next step of an attack; false after the last.
  function advance(trace) {
    const before = performance.now();
    const {value, done} = trace.rest.next();
    if (done) return false;
    trace.milliseconds += performance.now() - before;
    trace.iterates.push({pixels: value.pixels, probabilities: softmax(value.logits)});
    return true;
  }

  const says = (trace, step) => largest(trace.iterates[step].probabilities);

  async function attack() {
    const mine = ++started;
    document.body.dataset.state = "running";
    traces = networks.map((network) => traceOf(network, subject));
    layerMost.clear();
    one("at").max = steps();
    for (let going = true; going;) {
      await paint();
      if (mine !== started) return;
      going = traces.map(advance).some(Boolean);
      const step = Math.max(...traces.map(({iterates}) => iterates.length)) - 1;
      one("at").value = step;
      show(step, going);
    }
    document.body.dataset.state = "done";
  }

  async function attackAll() {
    const mine = ++started;
    document.body.dataset.state = "running";
    const held = networks.map(() => 0);
    for (let number = 0; number < content.images.labels.length; number++) {
      const found = [];
      for (const [i, network] of networks.entries()) {
        const trace = traceOf(network, testImage(number));
        while (advance(trace)) {
          await paint();
          if (mine !== started) return;
        }
        found.push(says(trace, steps()) === trace.label);
        held[i] += found[i];
      }
      mark(number, found);
      const counts = held.map((count, i) => `${content.networks[i].method} ${count}`);
      one("tally").textContent = `Held of ${number + 1}: ${counts.join(", ")}`;
    }
    document.body.dataset.state = "done";
  }

  // ---- Pictures ----

  const colour = (name) => getComputedStyle(document.body).getPropertyValue(`--${name}`).trim();

  function rgb(name) {
    const value = parseInt(colour(name).slice(1), 16);
    return [value >> 16, (value >> 8) & 255, value & 255];
  }

  const mixed = (from, to, share) => from.map((low, i) => low + share * (to[i] - low));

  // Draws a picture of one canvas pixel each; `colourOf(place)` gives [red, green, blue].
  function draw(canvas, high, wide, colourOf) {
    canvas.height = high;
    canvas.width = wide;
    const context = canvas.getContext("2d");
    const data = context.createImageData(wide, high);
    for (let place = 0; place < high * wide; place++) {
      data.data.set([...colourOf(place).map(Math.round), 255], 4 * place);
    }
    context.putImageData(data, 0, 0);
  }

  function drawImage(canvas, pixels) {
    draw(canvas, height, width, (place) => {
      const values = [...pixels.subarray(channels * place, channels * (place + 1))];
      return (channels === 1 ? [values[0], values[0], values[0]] : values).map((v) => 255 * v);
    });
  }

  // Draws a change of an image, from -most to most.
  function drawChange(canvas, change, most) {
    const [none, less, more] = ["background", "less", "more"].map(rgb);
    draw(canvas, height, width, (place) => {
      const values = [...change.subarray(channels * place, channels * (place + 1))];
      if (channels > 1) return values.map((value) => 127.5 * (1 + value / most));
      return mixed(none, values[0] < 0 ? less : more, Math.min(1, Math.abs(values[0]) / most));
    });
  }

  // ---- A network and what it says ----

  function show(step, going) {
    one("at_value").textContent = `${step} of ${steps()}`;
    for (const [i, card] of cards.entries()) {
      const trace = traces[i];
      showCard(card, trace, Math.min(step, trace.iterates.length - 1));
    }
    drawChart(step);
    if (!going || featureMilliseconds < 40) showFeatures(step);
  }

  function showCard(card, trace, step) {
    const {pixels, probabilities} = trace.iterates[step];
    const before = trace.iterates[0].probabilities;
    const change = pixels.map((value, i) => value - subject.pixels[i]);
    const reach = content.norm === "linf" ? epsilon() : Math.max(...change.map(Math.abs));
    drawImage(card.querySelector(".clean"), subject.pixels);
    drawChange(card.querySelector(".change"), change, reach || 1);
    drawImage(card.querySelector(".attacked"), pixels);
    const times = reach ? 0.5 / reach : 0;
    card.querySelector(".scale").textContent = times ? `change × ${times.toPrecision(2)}` : "change";
    showVerdict(card, trace, step);
    showClasses(card.querySelector(".classes"), before, probabilities, trace.label);
    const done = trace.iterates.length > steps();
    card.querySelector(".time").textContent =
      `${done ? "" : "So far, "}${trace.iterates.length - 1} steps took ${Math.round(trace.milliseconds)} ms here`;
  }

  function showVerdict(card, trace, step) {
    const name = (label) => content.classes[label];
    const verdict = card.querySelector(".verdict");
    const said = says(trace, step);
    const sure = percent(trace.iterates[step].probabilities[said]);
    const fell = trace.iterates.findIndex((_, i) => says(trace, i) !== trace.label);
    let text = `holds: ${name(said)} (${sure})`;
    if (said !== trace.label) {
      const change = `${name(trace.label)} became ${name(said)} (${sure})`;
      text = `fooled at step ${fell}: ${change}`;
      if (fell === 0) text = `wrong before the attack: ${name(said)} (${sure})`;
    }
    verdict.textContent = text;
    verdict.classList.toggle("fooled", said !== trace.label);
    Object.assign(card.dataset, {label: trace.label, says: said, step});
  }

  // A row for each class: all of ten, and of more the eight that matter most.
  function showClasses(list, before, after, label) {
    let shown = before.map((_, i) => i);
    if (shown.length > 10) {
      shown.sort((a, b) => Math.max(before[b], after[b]) - Math.max(before[a], after[a]));
      shown = [...new Set([label, ...shown])].slice(0, 8);
    }
    while (list.children.length > shown.length) list.lastChild.remove();
    while (list.children.length < shown.length) {
      const row = document.createElement("li");
      row.innerHTML = "<span class=name></span><span class=bar><i></i><b></b></span><span class=share></span>";
      list.append(row);
    }
    for (const [i, number] of shown.entries()) {
      const row = list.children[i];
      row.classList.toggle("right", number === label);
      row.children[0].textContent = content.classes[number];
      row.children[1].children[0].style.width = `${100 * after[number]}%`;
      row.children[1].children[1].style.left = `${100 * before[number]}%`;
      row.children[2].textContent = percent(after[number]);
      row.title = `${content.classes[number]}: ${percent(before[number])} before, ${percent(after[number])} after`;
    }
  }

  // ---- The course of the attack: the probability of the right class by step ----

  function svg(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function drawChart(step) {
    const wide = one("chart").clientWidth || 320;
    const [left, right, top, bottom, high] = [42, 14, 12, 26, 150];
    const x = (i) => left + (wide - left - right) * i / steps();
    const y = (share) => top + (high - top - bottom) * (1 - share);
    const picture = svg("svg", {
      viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, role: "img",
      "aria-label": "Probability of the right class by step of the attack",
    });
    for (const share of [0, 0.5, 1]) {
      picture.append(
        svg("line", {x1: left, x2: wide - right, y1: y(share), y2: y(share), class: "grid"}),
        svg("text", {x: left - 6, y: y(share) + 4, "text-anchor": "end"}, `${100 * share} %`),
      );
    }
    for (const i of new Set([0, Math.round(steps() / 2), steps()])) {
      picture.append(svg("text", {x: x(i), y: high - 8, "text-anchor": "middle"}, i));
    }
    picture.append(svg("line", {x1: x(step), x2: x(step), y1: y(1), y2: y(0), class: "now"}));
    for (const [number, trace] of traces.entries()) {
      const share = ({probabilities}) => probabilities[trace.label];
      const points = trace.iterates.map((iterate, i) => `${x(i)},${y(share(iterate))}`).join(" ");
      const last = Math.min(step, trace.iterates.length - 1);
      const at = {cx: x(last), cy: y(share(trace.iterates[last])), r: 4.5};
      picture.append(
        svg("polyline", {points, class: `line of${number}`}),
        svg("circle", {...at, class: `dot of${number}`}),
      );
    }
    one("chart").replaceChildren(picture);
  }

  // ---- Latent features ----

  const layerMost = new Map();
  let featureMilliseconds = 0;

  // How far the features of each latent layer moved: {name: {shape, distances, clean}}.
  function movement(network, pixels) {
    const [clean, moved] = [subject.pixels, pixels].map((values) => network.features(values));
    return new Map(network.latents.map(({name}, i) => {
      const distances = moved[i].values.map((value, at) => Math.abs(value - clean[i].values[at]));
      const size = clean[i].values.reduce((sum, value) => sum + Math.abs(value), 0);
      return [name, {shape: moved[i].shape, distances, size}];
    }));
  }

  function showFeatures(step) {
    const before = performance.now();
    const found = networks.map((network, i) => {
      const {iterates} = traces[i];
      return movement(network, iterates[Math.min(step, iterates.length - 1)].pixels);
    });
    for (const layers of found) {
      for (const [name, {distances}] of layers) {
        const most = distances.reduce((high, value) => Math.max(high, value), 0);
        layerMost.set(name, Math.max(layerMost.get(name) ?? 0, most));
      }
    }
    for (const part of document.querySelectorAll(".features")) {
      const number = Number(part.dataset.number);
      const latent = networks[number].latents.find(({name}) => name === part.dataset.layer);
      part.hidden = !latent;
      if (latent) showLayer(part, latent, found[number].get(latent.name));
    }
    featureMilliseconds = performance.now() - before;
  }

  function showLayer(part, {name, channels: left, features}, {shape, distances, size}) {
    const places = shape.slice(0, -1).reduce((product, length) => product * length, 1);
    const sum = distances.reduce((total, value) => total + value, 0);
    const mean = sum / (places * features);
    const text = `${left.length} of ${features} left, moved by ${mean.toPrecision(2)}`
      + (size ? ` (${percent(sum / size)})` : "");
    part.querySelector(".moved").textContent = text;
    const canvas = part.querySelector("canvas");
    canvas.setAttribute("aria-label", `${name}: ${text}`);
    part.dataset.mean = mean;
    drawTiles(canvas, left, features, shape, distances, layerMost.get(name) || 1);
  }

  // Draws a square for each feature, a map of its places where it has some.
  function drawTiles(canvas, left, features, shape, distances, most) {
    const wide = canvas.parentNode.clientWidth;
    const isMap = shape.length > 1;
    const [side, gap] = isMap ? [features > 24 ? 30 : 38, 4] : [9, 2];
    const columns = Math.max(1, Math.min(features, Math.floor((wide + gap) / (side + gap))));
    const rows = Math.ceil(features / columns);
    const [cssWide, cssHigh] = [columns, rows].map((count) => count * (side + gap) - gap);
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(cssWide * ratio);
    canvas.height = Math.round(cssHigh * ratio);
    canvas.style.width = `${cssWide}px`;
    canvas.style.height = `${cssHigh}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    context.strokeStyle = colour("line");
    const place = new Map(left.map((channel, i) => [channel, i]));
    const [none, moved] = ["still", "moved"].map(rgb);
    const shade = (value) => mixed(none, moved, Math.sqrt(value / most));
    const tile = document.createElement("canvas");
    for (let feature = 0; feature < features; feature++) {
      const [x, y] = [feature % columns, Math.floor(feature / columns)].map((i) => i * (side + gap));
      const i = place.get(feature);
      if (i === undefined) {
        context.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
      } else if (!isMap) {
        context.fillStyle = `rgb(${shade(distances[i]).map(Math.round).join(" ")})`;
        context.fillRect(x, y, side, side);
      } else {
        draw(tile, shape[0], shape[1], (at) => shade(distances[at * left.length + i]));
        context.drawImage(tile, x, y, side, side);
      }
    }
  }

  // ---- Choosing an image ----

  function choose(chosen) {
    subject = chosen;
    for (const button of one("images").children) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.number) === chosen.number));
    }
    attack();
  }

  function addThumbnails() {
    for (const number of content.images.labels.keys()) {
      const {pixels, label} = testImage(number);
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.number = number;
      button.setAttribute("aria-label", `${content.classes[label]}, test image ${content.images.rows[number]}`);
      const canvas = document.createElement("canvas");
      drawImage(canvas, pixels);
      const marks = document.createElement("span");
      marks.className = "marks";
      button.append(canvas, marks);
      button.addEventListener("click", () => choose(testImage(number)));
      one("images").append(button);
    }
  }

  // Says of a test image which networks held.
  function mark(number, found) {
    const marks = one("images").children[number].querySelector(".marks");
    marks.replaceChildren(...found.map((held) => {
      const sign = document.createElement("i");
      sign.className = held ? "held" : "fell";
      sign.textContent = held ? "✓" : "✗";
      return sign;
    }));
  }

  function clearMarks() {
    one("tally").textContent = "";
    for (const button of one("images").children) button.querySelector(".marks").replaceChildren();
  }

  // ---- Drawing ----

  // The drawing as an image like those of the dataset: as large as they are, in their middle, and
  // on a grid as coarse; null if nothing is drawn.
  function drawnPixels(pad) {
    const side = pad.width;
    const data = pad.getContext("2d").getImageData(0, 0, side, side).data;
    const ink = (x, y) => (x >= 0 && y >= 0 && x < side && y < side ? data[4 * (y * side + x)] / 255 : 0);
    let [low, high, total, middle] = [[side, side], [-1, -1], 0, [0, 0]];
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        const value = ink(x, y);
        if (value < 0.1) continue;
        low = [Math.min(low[0], x), Math.min(low[1], y)];
        high = [Math.max(high[0], x), Math.max(high[1], y)];
        total += value;
        middle = [middle[0] + value * x, middle[1] + value * y];
      }
    }
    if (!total) return null;
    const grid = content.drawn_on;
    const enlarged = grid !== height;
    // Scans of MNIST fit 20 of 28 pixels, around their centre of mass; those of digits fill all.
    const share = enlarged ? 1 : 20 / 28;
    const centre = low.map((least, i) => (enlarged ? (least + high[i]) / 2 : middle[i] / total));
    const whole = Math.max(high[0] - low[0], high[1] - low[1], side / 8) / share;
    const fine = 6;
    const coarse = Array.from({length: grid * grid}, (_, at) => {
      let sum = 0;
      for (let i = 0; i < fine * fine; i++) {
        const u = (at % grid + (i % fine + 0.5) / fine) / grid - 0.5;
        const v = (Math.floor(at / grid) + (Math.floor(i / fine) + 0.5) / fine) / grid - 0.5;
        sum += ink(Math.round(centre[0] + u * whole), Math.round(centre[1] + v * whole));
      }
      return sum / fine ** 2;
    });
    const at = (row, column) => coarse[
      Math.min(grid - 1, Math.max(0, row)) * grid + Math.min(grid - 1, Math.max(0, column))];
    return Float32Array.from({length: pixelsOfOne}, (_, i) => {
      const [v, u] = [Math.floor(i / width), i % width].map((p, axis) =>
        (p + 0.5) * grid / [height, width][axis] - 0.5);
      const [row, column] = [Math.floor(v), Math.floor(u)];
      const [dv, du] = [v - row, u - column];
      return (1 - dv) * ((1 - du) * at(row, column) + du * at(row, column + 1))
        + dv * ((1 - du) * at(row + 1, column) + du * at(row + 1, column + 1));
    });
  }

  function enableDrawing(pad) {
    const context = pad.getContext("2d", {willReadFrequently: true});
    Object.assign(context, {lineCap: "round", lineJoin: "round", strokeStyle: "white"});
    context.lineWidth = pad.width * (content.drawn_on === height ? 0.085 : 0.19);
    const clear = () => {
      context.fillStyle = "black";
      context.fillRect(0, 0, pad.width, pad.height);
    };
    clear();
    const hint = pad.parentNode.querySelector("span");
    const place = (event) => {
      const box = pad.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]
        .map((share) => share * pad.width);
    };
    let last = null;
    const stroke = (event) => {
      if (!last) return;
      const next = place(event);
      context.beginPath();
      context.moveTo(...last);
      context.lineTo(...next);
      context.stroke();
      last = next;
    };
    pad.addEventListener("pointerdown", (event) => {
      pad.setPointerCapture(event.pointerId);
      hint.hidden = true;
      last = place(event);
      stroke(event);
    });
    pad.addEventListener("pointermove", stroke);
    for (const name of ["pointerup", "pointercancel"]) {
      pad.addEventListener(name, () => {
        last = null;
        const pixels = drawnPixels(pad);
        if (pixels) choose({pixels, label: null, number: -1});
      });
    }
    one("clear").addEventListener("click", clear);
  }

  function enableFile(input) {
    input.addEventListener("change", async () => {
      const picture = await createImageBitmap(input.files[0]);
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [width, height];
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      // Its middle, as high or as wide as the picture.
      const scale = Math.max(width / picture.width, height / picture.height);
      const [wide, high] = [picture.width * scale, picture.height * scale];
      context.drawImage(picture, (width - wide) / 2, (height - high) / 2, wide, high);
      const data = context.getImageData(0, 0, width, height).data;
      const pixels = Float32Array.from({length: pixelsOfOne}, (_, i) =>
        data[4 * Math.floor(i / channels) + i % channels] / 255);
      choose({pixels, label: null, number: -1});
    });
  }

  // ---- Start ----

  function showAttacker() {
    one("epsilon_value").textContent = `ε = ${epsilonText()}`;
    one("steps_value").textContent = steps();
  }

  one("steps").value = content.steps;
  for (const name of ["epsilon", "steps"]) {
    one(name).addEventListener("input", () => {
      showAttacker();
      clearMarks();
      attack();
    });
  }
  one("all").addEventListener("click", attackAll);
  if (one("pad")) enableDrawing(one("pad"));
  if (one("file")) enableFile(one("file"));
  const again = () => { if (traces[0].iterates.length) show(Number(one("at").value), false); };
  one("at").addEventListener("input", again);
  let wide = window.innerWidth;
  window.addEventListener("resize", () => {
    if (wide !== window.innerWidth) again();  // Not when a bar of the browser comes or goes.
    wide = window.innerWidth;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addThumbnails();
  showAttacker();
  choose(testImage(0));
})();
