// npm run build [-- ONNX_FOLDER [PRECISION]]: puts the page and an exported captioner into dist/, for any static server.
// By default the captioner is the repository's, in the smallest precision that its folder holds.

import { cpSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

const PAGE = ["index.html", "style.css", "page.js", "attention.js", "worker.js", "onnx_captioner.js", "preprocess.js"];
const RUNTIME = ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];

function fail(message) {
  console.error(`error: ${message}`);
  process.exit(2);
}

const here = import.meta.dirname;
const [given, wanted, output = join(here, "dist")] = process.argv.slice(2);
const started = process.env.INIT_CWD ?? "."; // the folder npm was called from; it runs scripts in package.json's
const own = join(here, "..", "checkpoints", "showattend-resnet50-flickr8k", "onnx");
const [folder, dist] = [given ? resolve(started, given) : own, resolve(started, output)];

let settings;
try {
  settings = JSON.parse(readFileSync(join(folder, "captioner.json"), "utf-8"));
} catch (error) {
  const hint = given ? "" : "; name another folder: npm run build -- ONNX_FOLDER";
  fail(`${folder} is not an exported captioner: its captioner.json cannot be read (${error.code ?? error.message})${hint}`);
}
const held = Object.keys(settings.files ?? {});
const precision = wanted ?? ["int8", "float16", "float32"].find((smallest) => held.includes(smallest));
if (!held.includes(precision)) fail(`${folder} holds ${held.join(", ")}, not the precision ${precision}`);
settings.files = { [precision]: settings.files[precision] };

try {
  for (const part of ["model", "runtime"]) {
    rmSync(join(dist, part), { recursive: true, force: true });
    mkdirSync(join(dist, part), { recursive: true });
  }
  for (const name of PAGE) cpSync(join(here, name), join(dist, name));
  const runtime = join(here, "node_modules", "onnxruntime-web", "dist");
  for (const name of RUNTIME) cpSync(join(runtime, name), join(dist, "runtime", name));
  for (const name of Object.values(settings.files[precision])) cpSync(join(folder, name), join(dist, "model", name));
  const downloads = [...Object.values(settings.files[precision]).map((name) => `model/${name}`), `runtime/${RUNTIME[1]}`];
  settings.bytes = downloads.reduce((sum, name) => sum + statSync(join(dist, name)).size, 0);
  writeFileSync(join(dist, "model", "captioner.json"), JSON.stringify(settings));
} catch (error) {
  const hint = error.path?.includes("node_modules") ? ": run npm ci first" : "";
  fail(`${error.path ?? dist} cannot be copied (${error.code ?? error.message})${hint}`);
}
const megabytes = (settings.bytes / 1e6).toFixed(0);
console.log(`${dist}: the page downloads ${megabytes} MB. Try it: python3 -m http.server -d "${dist}"`);
