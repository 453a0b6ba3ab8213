// The bundled network in Node.js: the same ONNX file gives the same probabilities as in Python.
//   npm install --ignore-scripts && node run.mjs ../../../petseg_runtime/models/MODEL.onnx
// What comes before the network (reorient, crop, resample, normalise) is described in the model's own manifest.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";

const golden = JSON.parse(readFileSync(new URL("../golden.json", import.meta.url)));
const content = readFileSync(process.argv[2]);
if (createHash("sha256").update(content).digest("hex") !== golden.model_sha256) {
  console.error("The model is not the one that the golden vectors are of.");
  process.exit(4);
}

const [depth, height, width] = golden.shape;
const window = new Float32Array(depth * height * width);
let state = 1n;
for (let i = 0; i < window.length; i++) {
  state = (1664525n * state + 1013904223n) % 4294967296n;
  const z = Math.floor(i / (height * width)) - depth / 2;
  const y = (Math.floor(i / width) % height) - height / 2;
  const x = (i % width) - width / 2;
  const ball = z * z + y * y + x * x < 100 ? 6 : 0;
  window[i] = Number(state >> 24n) / 256 - 0.5 + ball;
}

const session = await ort.InferenceSession.create(content);
const results = await session.run({ image: new ort.Tensor("float32", window, [1, 1, depth, height, width]) });
const probabilities = results.probability.data;
const difference = Math.max(
  ...golden.probabilities.map((p, i) => Math.abs(probabilities[i * golden.every] - p) / (p + 1e-4)), // a sigmoid is not exact near 0
);
console.log(`${golden.probabilities.length} probabilities, largest difference from Python ${(100 * difference).toPrecision(2)} %`);
process.exit(difference < 0.01 ? 0 : 1);
