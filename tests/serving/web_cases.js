"use strict";

// Runs networks of the page under Node.js: node web_cases.js SCRIPTS CASES ANSWERS
// CASES: [{network, images, labels, attacks: [settings of pgd]}].

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [scripts, cases, answers] = process.argv.slice(2);
for (const name of ["tfjs.js", "network.js"]) {
  vm.runInThisContext(fs.readFileSync(path.join(scripts, name), "utf8"), {filename: name});
}
const {Network, pgd} = vm.runInThisContext("anpvs");

const found = JSON.parse(fs.readFileSync(cases)).map(({network: described, images, labels, attacks}) => {
  const network = new Network(described);
  const pixels = Float32Array.from(images);
  const {logits, gradient} = network.evaluate(pixels, labels);
  const iterates = attacks.map((settings) => [...pgd(network, pixels, labels, settings)]);
  const one = pixels.length / labels.length;
  const last = iterates.map((all) => all.at(-1));
  return {
    logits: [...logits],
    gradient: [...gradient],
    steps: iterates.map((all) => all.map(({step}) => step)),
    attacked: last.map((iterate) => [...iterate.pixels]),
    attackedLogits: last.map((iterate) => [...iterate.logits]),
    features: network.features(pixels.slice(0, one)).map(({shape, values}) => ({shape, values: [...values]})),
  };
});
fs.writeFileSync(answers, JSON.stringify(found));
