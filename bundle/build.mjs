// Writes tfjs.js of the package from tfjs.js here: npm ci && node build.mjs

import {fileURLToPath} from "node:url";
import {build} from "esbuild";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));

const replaced = {
  name: "replaced",
  setup({onResolve}) {
    // For the backend alone: tfjs.js imports single files of the core.
    onResolve({filter: /^@tensorflow\/tfjs-core$/}, () => ({path: path("core.js")}));
    // Hashes of strings, which would bring the package `long`.
    onResolve({filter: /\/hash_util$/}, () => ({path: path("no_hashes.js")}));
  },
};

await build({
  entryPoints: [path("tfjs.js")],
  outfile: path("../anpvs_tf/serving/web/tfjs.js"),
  plugins: [replaced],
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "tf",
  charset: "ascii",
  legalComments: "none",
  banner: {
    js: "/*! TensorFlow.js 4.22.0, copyright Google LLC, Apache License 2.0; the parts that the "
      + "page needs, minified */",
  },
});
