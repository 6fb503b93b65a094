// The device's part of a cascade, in a browser or in Node: the stages of the device's folder, and
// what decides after each. It needs onnxruntime-web, which whoever uses it hands over.
//
//     import * as ort from "onnxruntime-web";
//     import { Device } from "./device/device.mjs";
//     const device = await Device.open(ort, "device/");
//     const told = await device.run(new ort.Tensor("float32", pixels, [n, 3, 32, 32]));
//     told.label, told.probabilities, told.stage, told.away
//
// It walks as offramp/_core/onnx_runner.py and offramp/edge/device.py do, name for name.

const RAW = ""; // stands for the raw input among the carries
const FORMAT = 1;

/** The stages on the device. */
export class Device {
  /**
   * Read a folder, look at its digests, and open its models.
   *
   * @param ort onnxruntime-web.
   * @param source Address of the folder, or a function that gives the bytes of a file by its name.
   * @param options Of the sessions.
   */
  static async open(ort, source, options = {}) {
    const read = typeof source === "function" ? source : (name) => fetched(source, name);
    const manifest = JSON.parse(new TextDecoder().decode(await read("manifest.json")));
    const edge = manifest.edge;
    if (manifest.format !== "offramp-onnx" || manifest.version !== 1 || !edge) {
      throw new Error("This is no device's folder of a split; offramp edge split makes one.");
    }
    if (edge.version !== FORMAT) {
      throw new Error(`The folder has version ${edge.version}, this file reads ${FORMAT}.`);
    }
    const sessions = {};
    for (const name of manifest.files) {
      const bytes = await read(name);
      await checkDigest(name, bytes, edge.files[name]);
      sessions[name] = await ort.InferenceSession.create(bytes, options);
    }
    return new Device(ort, manifest, sessions);
  }

  constructor(ort, manifest, sessions) {
    this.ort = ort;
    this.manifest = manifest;
    this.edge = manifest.edge;
    this.classNames = manifest.class_names;
    this.stages = manifest.stage_names;
    this._sessions = sessions;
    this._seen = new Set(); // types of numbers that have been looked at
    this._here = new Set(manifest.stages.map((stage) => stage.index));
    this._ends = manifest.paths.map((path) => path[path.length - 1]);
    this._last = manifest.paths.map((path) =>
      this._here.has(path[path.length - 1]) ? path[path.length - 1] : path[path.length - 2],
    );
  }

  /**
   * Take a batch as far as it comes here.
   *
   * @param inputs One tensor `(n, ...)`, or tensors by name.
   * @returns For each example `label` (-1 where there is no answer), the `probabilities` (one row
   *     each), the `stage` that answered, and whether it is to go on (`away`). What goes on has the
   *     answer of the last stage here, for which the promise of the device alone holds.
   */
  async run(inputs) {
    const names = this.manifest.inputs;
    const given = inputs instanceof this.ort.Tensor ? { [names[0]]: inputs } : inputs;
    const raw = names.map((name) => given[name]);
    const n = raw[0]?.dims[0];
    const fits = Object.keys(given).length === names.length && raw.every((t) => t?.dims[0] === n);
    if (!fits) {
      throw new Error(`inputs must be ${names}, as many examples in each.`);
    }
    this._look(raw[0]);
    const { state } = await this.walk(raw, n);
    const node = [...state.node.data].map(Number);
    const classes = this.manifest.classes;
    const rows = node.map((_, k) => state.answer.data.slice(k * classes, (k + 1) * classes));
    return {
      label: rows.map((row) => (Number.isNaN(row[0]) ? -1 : row.indexOf(Math.max(...row)))),
      probabilities: rows.map((row) => row.map(Math.exp)),
      stage: node.map((k) => this.stages[this._last[k]]),
      away: node.map((k) => !this._here.has(this._ends[k])),
    };
  }

  /** Refuse inputs where the first numbers of a type are not those that the stages read. */
  _look(tensor) {
    const { type, dims, data } = tensor;
    const bits = type === "float16" && data instanceof Uint16Array; // no numbers to compare
    if (this._seen.has(type) || !data.length || bits) return;
    let said = true;
    for (const [low, high] of this.manifest.domains ?? []) {
      const picture = dims.length >= 3 && [1, 3].includes(dims[dims.length - 3]);
      if (high <= 1 && !picture) continue;
      const { least, most, whole: rounded, finite } = extremes(data);
      said &&= finite; // what is not hides none of the others
      if (least > most) continue; // nothing is
      const room = (high - low) / 2;
      const largest = Math.max(Math.abs(least), Math.abs(most));
      const whole = !type.startsWith("float");
      const pixels = type === "uint8" && high >= 255;
      let dark = high > 2 && largest > 0 && largest <= Math.max(1, high / 64) && !pixels;
      // A mask is no picture; counts in a table may all be 1.
      if (whole) dark &&= largest <= 1 && (high >= 255 || picture);
      else dark &&= largest <= 1 || !rounded;
      if (dark || least < low - room || most > high + room) {
        throw new Error(
          `inputs must hold numbers in [${low}, ${high}], which the stages read, got ` +
            `${type} in [${general(least)}, ${general(most)}].`,
        );
      }
      said &&= pixels || (largest > 0 && (!whole || high > 1));
    }
    if (said) this._seen.add(type);
  }

  /** What is known of the examples after the stages that are here, and the carries. */
  async walk(raw, n) {
    const { ort, manifest } = this;
    const c = manifest.classes;
    const zeros = () => new ort.Tensor("float32", new Float32Array(n * c), [n, c]);
    const state = {
      node: new ort.Tensor("int64", new BigInt64Array(n), [n]),
      answer: new ort.Tensor("float32", new Float32Array(n * c).fill(NaN), [n, c]),
      clean: new ort.Tensor("bool", new Uint8Array(n).fill(1), [n]),
    };
    for (const stage of manifest.stages) {
      state[`logits.${stage.index}`] = zeros();
    }
    const carries = { [RAW]: { tensors: raw, place: Int32Array.from({ length: n }, (_, k) => k) } };
    for (const stage of manifest.stages) {
      const rows = [];
      state.node.data.forEach((node, k) => {
        if (this._ends[Number(node)] === stage.index) rows.push(k);
      });
      if (rows.length) await this._visit(stage, rows, n, state, carries);
    }
    return { state, carries };
  }

  /** Run what the examples at `rows` lack, answer and decide. */
  async _visit(stage, rows, n, state, carries) {
    await this._reach(stage.segments, rows, n, carries);
    const carry = this._taken(carries[stage.group], rows);
    const [logits] = stage.head === null ? carry : await this._call(stage.head, carry);
    put(state[`logits.${stage.index}`], rows, logits);
    const given = stage.reads.map((what) =>
      what === "logits" ? logits : taken(this.ort, state[what], rows),
    );
    const found = await this._call(stage.decision, given);
    ["answer", "node", "clean"].slice(0, found.length).forEach((what, k) => {
      put(state[what], rows, found[k]);
    });
    for (const group of Object.keys(carries)) {
      if (!stage.keep.includes(group)) delete carries[group];
    }
  }

  /** Run those segments that the examples at `rows` have not run. */
  async _reach(segments, rows, n, carries) {
    for (const segment of segments) {
      const held = carries[segment.group];
      const lacking = held ? rows.filter((k) => held.place[k] < 0) : rows;
      if (!lacking.length) continue;
      const source = this._taken(carries[segment.source], lacking);
      const made = await this._call(segment.file, source);
      carries[segment.group] = joined(this.ort, held, made, lacking, n);
    }
  }

  async _call(file, given) {
    const session = this._sessions[file];
    const feeds = Object.fromEntries(session.inputNames.map((name, k) => [name, given[k]]));
    const found = await session.run(feeds);
    return session.outputNames.map((name) => found[name]);
  }

  _taken(carry, rows) {
    const places = rows.map((k) => carry.place[k]);
    return carry.tensors.map((tensor) => taken(this.ort, tensor, places));
  }
}

/** The bytes of a file of a folder. */
async function fetched(folder, name) {
  const answer = await fetch(`${folder.replace(/\/$/, "")}/${encodeURIComponent(name)}`);
  if (!answer.ok) throw new Error(`${name} of ${folder} cannot be read: HTTP ${answer.status}.`);
  return new Uint8Array(await answer.arrayBuffer());
}

/** Refuse a file that is another one; pages without https have nothing to compute digests with. */
async function checkDigest(name, bytes, wanted) {
  if (!globalThis.crypto?.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== wanted) throw new Error(`${name} has changed since it was written.`);
}

/** The least and the most of the finite ones of some numbers, whether these are whole, and all finite. */
function extremes(data) {
  let [least, most, whole, finite] = [Infinity, -Infinity, true, true];
  for (const each of data) {
    const value = Number(each);
    if (!Number.isFinite(value)) {
      finite = false;
      continue;
    }
    least = Math.min(least, value);
    most = Math.max(most, value);
    whole &&= Number.isInteger(value);
  }
  return { least, most, whole, finite };
}

/** A number in four digits, as Python writes it with "g". */
function general(value) {
  const [digits, power] = value.toExponential(3).split("e").map(Number);
  if (power >= -4 && power < 4) return String(Number(value.toPrecision(4)));
  return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}

/** How many numbers one example has. */
function width(tensor) {
  return tensor.dims.slice(1).reduce((product, size) => product * size, 1);
}

/** The rows of some examples. */
function taken(ort, tensor, rows) {
  const size = width(tensor);
  const data = new tensor.data.constructor(rows.length * size);
  rows.forEach((k, i) => data.set(tensor.data.subarray(k * size, (k + 1) * size), i * size));
  return new ort.Tensor(tensor.type, data, [rows.length, ...tensor.dims.slice(1)]);
}

/** Write the rows of some examples. */
function put(tensor, rows, values) {
  const size = width(tensor);
  rows.forEach((k, i) => tensor.data.set(values.data.subarray(i * size, (i + 1) * size), k * size));
}

/** A carry with rows of other examples behind those that are there. */
function joined(ort, held, made, rows, n) {
  const start = held ? held.tensors[0].dims[0] : 0;
  const place = held ? held.place.slice() : new Int32Array(n).fill(-1);
  rows.forEach((k, i) => (place[k] = start + i));
  if (!held) return { tensors: made, place };
  const tensors = held.tensors.map((tensor, k) => {
    const data = new tensor.data.constructor(tensor.data.length + made[k].data.length);
    data.set(tensor.data);
    data.set(made[k].data, tensor.data.length);
    return new ort.Tensor(tensor.type, data, [start + rows.length, ...tensor.dims.slice(1)]);
  });
  return { tensors, place };
}
