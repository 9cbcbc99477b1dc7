"use strict";

// Runs a network of a page under Node.js, by the page's own scripts, for the check of an export:
//   node check.js PAGE NUMBER IMAGES OUTPUTS
// IMAGES: the float32 pixels of all images. OUTPUTS: float32, all logits and then all probabilities.

const fs = require("fs");
const vm = require("vm");

const [page, number, images, outputs] = process.argv.slice(2);
const text = fs.readFileSync(page, "utf8");

function script(id) {
  const from = text.indexOf(">", text.indexOf(`<script id="${id}"`)) + 1;
  return text.slice(from, text.indexOf("</script>", from));
}

for (const id of ["tfjs", "network"]) vm.runInThisContext(script(id), {filename: id});
const {Network, softmax} = vm.runInThisContext("anpvs");
const network = new Network(JSON.parse(script("content")).networks[number]);
const pixels = new Float32Array(new Uint8Array(fs.readFileSync(images)).buffer);
const found = network.logits(network.images(pixels));
const logits = found.dataSync();
const probabilities = new Float32Array(logits.length);
for (let start = 0; start < logits.length; start += found.shape[1]) {
  probabilities.set(softmax(logits.subarray(start, start + found.shape[1])), start);
}
fs.writeFileSync(outputs, Buffer.concat([logits, probabilities].map((one) => Buffer.from(one.buffer))));
