// Answers inputs with a device's folder: node in_node.mjs FOLDER INPUTS, a file of JSON.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, inputs] = process.argv.slice(2);
const ort = createRequire(import.meta.url)("onnxruntime-web"); // found by NODE_PATH
ort.env.wasm.numThreads = 1;
const { Device } = await import(pathToFileURL(`${folder}/device.mjs`));
const device = await Device.open(ort, (name) => readFile(`${folder}/${name}`));
const { shape, data } = JSON.parse(await readFile(inputs, "utf-8"));
const told = await device.run(new ort.Tensor("float32", Float32Array.from(data), shape));
told.probabilities = told.probabilities.map((row) => [...row]);
console.log(JSON.stringify(told));
