// What is promised of a recorded cascade: the same rule as offramp.evaluation.certify, in plain JavaScript.
//
// Candidates are put in an order on the examples that they were fitted on; each is tested on other
// examples, from the safest to the cheapest; the walk ends at the first that fails. A test runs this
// file beside the Python code and compares (tests/docs/test_playground.py). Counts are integers and
// costs are those that Python computed, so that both see the same ties.
//
// A classic script, not a module: pages that are opened from a folder may not load modules.

const Certificate = (() => {
  "use strict";
  const SLACK = 0.01; // of delta, spent on how often the answers of a candidate and the reference differ
  const STEP = 0.3; // standard errors that a candidate must be safer than the next, or be left out
  const GRID = 33, FINE = 13; // discordance rates that are tried
  const ROUNDING = 1e-9, FAR = 9;
  const MOST = 10_000_000; // examples: beyond, "about so many" helps nobody

  // ---- the binomial distribution

  const logs = [0, 0]; // of factorials
  function logFactorial(n) {
    for (let k = logs.length; k <= Math.min(n, 200_000); k++) logs.push(logs[k - 1] + Math.log(k));
    if (n < logs.length) return logs[n];
    const x = n + 1, y = 1 / (x * x); // Stirling's series
    const tail = (1 / 12 - y * (1 / 360 - y / 1260)) / x;
    return (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + tail;
  }

  const logChoose = (n, k) => logFactorial(n) - logFactorial(k) - logFactorial(n - k);

  /** P(Bin(n, q) = k). */
  function chanceOf(k, n, q) {
    if (q <= 0) return k === 0 ? 1 : 0;
    if (q >= 1) return k === n ? 1 : 0;
    return Math.exp(logChoose(n, k) + k * Math.log(q) + (n - k) * Math.log1p(-q));
  }

  /** P(Bin(n, q) <= k), by the continued fraction of the incomplete beta function (DLMF 8.17.22). */
  function chanceOfAtMost(k, n, q) {
    if (k < 0) return 0;
    if (k >= n || q <= 0) return 1;
    if (q >= 1) return 0;
    const a = n - k, b = k + 1, x = 1 - q; // I_x(a, b)
    // The fraction converges fast below the mean; above it the other tail does.
    if (x <= (a + 1) / (a + b + 2)) return tail(a, b, x);
    return 1 - tail(b, a, q);
  }

  function tail(a, b, x) {
    const outer = Math.exp(
      logFactorial(a + b - 1) - logFactorial(a) - logFactorial(b - 1) + a * Math.log(x) + b * Math.log1p(-x),
    );
    let above = 1, below = 0, value = 1; // modified Lentz: the fraction from its front on
    for (let j = 1; j < 10_000; j++) {
      const m = j >> 1;
      const term = j % 2
        ? (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1))
        : (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
      below = 1 / (1 + term * below);
      above = 1 + term / above;
      value *= above * below;
      if (Math.abs(above * below - 1) < 1e-15) break;
    }
    return outer / value;
  }

  /** Upper Clopper-Pearson limit of a probability; it is exceeded with chance `level`. */
  function upperLimit(count, n, level) {
    if (count === n) return 1;
    let low = count / n, high = 1;
    for (let i = 0; i < 200; i++) {
      const middle = (low + high) / 2;
      if (middle <= low || middle >= high) break;
      if (chanceOfAtMost(count, n, middle) > level) low = middle;
      else high = middle;
    }
    return high;
  }

  // ---- p-values of "the risk exceeds the limit"

  /** Of a share of examples: exact. */
  const binomialP = (errors, n, limit) => chanceOfAtMost(errors, n, limit);

  /** Of a mean of differences -1, 0, 1: the largest over a confidence set of how many differ. */
  function pairedP(lost, won, n, limit, slack) {
    const seen = lost - won;
    if (seen >= n * limit) return 1;
    const highest = upperLimit(lost + won, n, slack);
    if (highest <= limit) return slack;
    const spread = FAR * Math.sqrt(n * Math.max(limit * (1 - limit), highest * (1 - highest), 0.25 / n));
    const low = Math.max(0, Math.floor(n * limit - spread));
    const high = Math.min(n, Math.ceil(n * highest + spread));
    const reached = (seen - n * limit) / Math.sqrt(lost + won + n * limit);
    const most = []; // lost examples among d that differ, at most
    for (let d = low; d <= high; d++) {
      const below = n * limit + reached * Math.sqrt(d + n * limit);
      most.push(Math.floor((below + d) / 2 + ROUNDING));
    }
    const chance = (q) => {
      let sum = 0;
      for (let d = low; d <= high; d++) {
        const m = most[d - low];
        if (m < 0) continue;
        const weight = chanceOf(d, n, q);
        if (weight > 0) sum += weight * chanceOfAtMost(Math.min(m, d), d, (1 + limit / q) / 2);
      }
      return sum;
    };
    const coarse = spaced(limit, highest, GRID), found = coarse.map(chance);
    const top = found.indexOf(Math.max(...found));
    const fine = spaced(coarse[Math.max(0, top - 1)], coarse[Math.min(top + 1, GRID - 1)], FINE);
    return Math.min(1, Math.max(found[top], ...fine.map(chance)) + slack);
  }

  const spaced = (low, high, k) =>
    Array.from({ length: k }, (_, i) => (i === k - 1 ? high : low + (i * (high - low)) / (k - 1)));

  function pValue(found, asked) {
    const { n, lost, won } = found, { limit, delta } = asked;
    if (asked.risk === "accuracy_drop") return pairedP(lost, won, n, limit, SLACK * delta);
    return binomialP(lost, n, limit);
  }

  /** Examples without which nothing is promised, even if none is lost. */
  const fewest = ({ limit, delta }) => Math.ceil(Math.log(delta) / Math.log1p(-limit));

  // ---- the order of the tests, on the examples that candidates were fitted on

  /** True where no other point is at least as good in both and better in one. */
  function onFront(costs, risks) {
    return costs.map((cost, i) =>
      !costs.some((other, j) =>
        other <= cost && risks[j] <= risks[i] && (other < cost || risks[j] < risks[i])));
  }

  /** Rules that look at something: as many examples of a fit are not lost by luck alone. */
  const rulesOf = (point) => point.thresholds.filter((threshold) => threshold !== null).length;

  /** Standard errors between the risk, without that luck, and its limit; one more example counts in. */
  function room(found, rules, asked) {
    const paired = asked.risk === "accuracy_drop";
    const { n, lost } = found, won = paired ? found.won : 0;
    const mean = (lost - won) / n, kept = n - lost - won;
    const squares = won * (-1 - mean) ** 2 + kept * (0 - mean) ** 2 + lost * (1 - mean) ** 2;
    return (asked.limit - mean - rules / n) / Math.sqrt((1 + rules + squares) / (n + 1) / n);
  }

  /** Places of the points that are tested, from the safest to the cheapest. */
  function walkOrder(points, reference, asked) {
    const everyCost = points.map((p) => p.cost);
    const seen = [(p) => p.fit.lost - p.fit.won, (p) => p.fit.lost];
    const risks = [...seen, ...seen.map((risk) => (p) => risk(p) + rulesOf(p))];
    const fronts = risks.map((risk) => onFront(everyCost, points.map(risk)));
    const candidates = points.map((_, i) => i)
      .filter((i) => points[i].single || fronts.some((front) => front[i]));
    const rooms = candidates.map((i) => room(points[i].fit, rulesOf(points[i]), asked));
    const costs = candidates.map((i) => points[i].cost);
    const front = onFront(costs, rooms.map((r) => -r));
    const rising = candidates.map((_, k) => k)
      .filter((k) => front[k] && costs[k] < points[reference].cost)
      .sort((a, b) => costs[a] - costs[b] || b - a);
    const kept = [];
    for (const k of rising) {
      if (!kept.length || rooms[k] >= rooms[kept[kept.length - 1]] + STEP) kept.push(k);
    }
    return kept.reverse().map((k) => candidates[k]);
  }

  // ---- the promise

  /**
   * The cheapest point whose limit is promised.
   *
   * @param points Each with `cost` (over the reference's, on fit), `thresholds` (null: never leave),
   *     `fit` and `tested`, both `{n, lost, won}`: examples, those lost against the reference, those
   *     corrected; `single` for a network alone.
   * @param reference Place of the reference among them.
   * @param asked `{risk, limit, delta}`; risk is "accuracy_drop" or "negative_flips".
   * @returns `chosen` (a place; null where nothing is promised), `order` (places), `p` (of each, up
   *     to the first that failed), `pValue`, and `needed`: about how many examples would do, or null.
   */
  function certify(points, reference, asked) {
    const order = walkOrder(points, reference, asked);
    const refused = { chosen: null, order, p: [], pValue: null, needed: null, fewest: fewest(asked) };
    if (!order.length) return refused;
    const n = points[order[0]].tested.n;
    const p = [];
    for (const i of order) {
      p.push(pValue(points[i].tested, asked));
      if (p[p.length - 1] > asked.delta) break;
    }
    const passed = p[p.length - 1] > asked.delta ? p.length - 1 : p.length;
    if (n < refused.fewest || passed === 0) {
      return { ...refused, p: n < refused.fewest ? [] : p, needed: needed(points[order[0]].tested, asked) };
    }
    return { ...refused, chosen: order[passed - 1], p, pValue: Math.max(...p.slice(0, passed)) };
  }

  /** About how many examples the first candidate would have passed with; null if no number. */
  function needed(found, asked) {
    const lostShare = (found.lost - (asked.risk === "accuracy_drop" ? found.won : 0)) / found.n;
    if (lostShare >= asked.limit) return null;
    const passes = (n) => {
      const lost = roundEven((found.lost * n) / found.n);
      const won = Math.min(roundEven((found.won * n) / found.n), n - lost);
      return pValue({ n, lost, won }, asked) <= asked.delta;
    };
    let low = fewest(asked) - 1, high = low + 1;
    while (!passes(high)) {
      [low, high] = [high, 2 * high];
      if (high > MOST) return null;
    }
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2);
      if (passes(middle)) high = middle;
      else low = middle;
    }
    return high;
  }

  function roundEven(x) { // as Python rounds
    const down = Math.floor(x), rest = x - down;
    if (rest !== 0.5) return Math.round(x);
    return down % 2 === 0 ? down : down + 1;
  }

  // ---- replay: what a candidate would have done

  /**
   * Where each example leaves, and what comes of it.
   *
   * @param policy `stages` (a chain, by index), `thresholds` (one for each but the last; null: never
   *     leave there), `ratios` (cost of leaving after each, over the reference's).
   * @param part `sure` (for each stage a Float32Array), `said` (for each stage the labels), `labels`.
   * @param n How many of its examples to look at, the first ones.
   * @param reference Index of the reference's stage.
   */
  function replay(policy, part, n, reference) {
    const { stages, thresholds, ratios } = policy;
    const left = new Uint8Array(n), leaving = new Array(stages.length).fill(0);
    let lost = 0, won = 0, right = 0;
    for (let i = 0; i < n; i++) {
      let k = 0;
      while (k < stages.length - 1) {
        const threshold = thresholds[k];
        if (threshold !== null && part.sure[stages[k]][i] >= threshold) break;
        k++;
      }
      left[i] = stages[k];
      leaving[k]++;
      const ours = part.said[stages[k]][i] === part.labels[i];
      const theirs = part.said[reference][i] === part.labels[i];
      right += ours ? 1 : 0;
      lost += theirs && !ours ? 1 : 0;
      won += ours && !theirs ? 1 : 0;
    }
    const spent = leaving.reduce((sum, count, k) => sum + count * ratios[k], 0);
    return { n, lost, won, left, leaving, cost: spent / n, accuracy: right / n };
  }

  return { certify, replay, pairedP, binomialP, chanceOfAtMost, upperLimit, fewest, walkOrder, room };
})();

if (typeof module !== "undefined") module.exports = Certificate;
