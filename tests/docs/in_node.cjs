// Answers problems as the playground does: node in_node.cjs CERTIFICATE.js PROBLEMS.json
const { readFileSync } = require("node:fs");
const [certificate, problems] = process.argv.slice(2);
const Certificate = require(certificate);
const unpacked = (text) => Uint8Array.from(Buffer.from(text, "base64"));

const given = JSON.parse(readFileSync(problems, "utf-8"));
const answers = given.frontiers.map(({ recorded, asked }) => {
  const parts = {};
  for (const [name, part] of Object.entries(recorded.parts)) {
    parts[name] = {
      labels: unpacked(part.labels),
      said: part.said.map(unpacked),
      sure: part.sure.map((text) => new Float32Array(unpacked(text).buffer)),
    };
  }
  const fitted = !parts.fit ? [] : recorded.points.map((point) => {
    const { lost, won } = Certificate.replay(point, parts.fit, point.fit.n, recorded.reference);
    return { lost, won };
  });
  const answered = asked.map((one) => {
    const tested = recorded.points.map((point) =>
      Certificate.replay(point, parts.calibrate, one.n, recorded.reference));
    const points = recorded.points.map((point, i) => ({ ...point, tested: tested[i] }));
    const reference = points.findIndex((p) => p.single && p.stages[0] === recorded.reference);
    const found = Certificate.certify(points, reference, one);
    const { chosen } = found;
    return {
      chosen,
      p: found.pValue,
      tested: chosen === null ? null : found.p.length,
      needed: found.needed,
      cost: chosen === null ? null : tested[chosen].cost,
    };
  });
  return { fitted, answered };
});
const paired = given.counts.map((counts) => Certificate.pairedP(...counts));
const binomial = given.counts.map(([lost, , n, limit]) => Certificate.binomialP(lost, n, limit));
console.log(JSON.stringify({ answers, paired, binomial }));
