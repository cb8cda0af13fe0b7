// @ts-check
/** Labelled bars of the width that every layer keeps, drawn as the layers finish. */

import { html } from "../vendor/htm-preact.js";

const WIDTH = 860;
const HEIGHT = 96;
const [LEFT, TOP, BOTTOM] = [44, 6, 74];
const ROWS = [
  ["Attention", "attention", "attention_part"],
  ["MLP", "mlp", "mlp_part"],
];

/** @param {{ layers: any[], total: number }} props `layers` indexed by layer number */
export function LayerBars({ layers, total }) {
  const done = layers.filter(Boolean).length;
  return html`${ROWS.map(([name, kind, part]) => html`<h3>${name}</h3>
    <div class="scroll" tabindex="0" role="region" aria-label=${`${name}, width kept per layer`}>
      <svg class="shapes" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${`${done} of ${total} layers done. ${name}: ${summary(layers, part)}`}>
        ${[0, 0.5, 1].map((value) => html`<line x1=${LEFT} x2=${WIDTH} y1=${height(value)} y2=${height(value)} />
          <text x=${LEFT - 6} y=${height(value) + 4} text-anchor="end">${`${100 * value} %`}</text>`)}
        ${Array.from({ length: total }, (_, layer) => html`<${Column} layer=${layer} total=${total} kind=${kind} share=${layers[layer]?.[part]} />`)}
      </svg>
    </div>`)}
    <p class="dim tiny centred">Layer</p>`;
}

/** @param {number} value */
const height = (value) => BOTTOM - (BOTTOM - TOP) * value;

/** One layer's bar; a layer that keeps nothing has a thin one, so that it is seen. @param {{ layer: number, total: number, kind: string, share: number | undefined }} props */
function Column({ layer, total, kind, share }) {
  const step = (WIDTH - LEFT) / Math.max(total, 1);
  const [x, width] = [LEFT + layer * step + 0.07 * step, 0.86 * step];
  const finished = share !== undefined && share !== null;
  const bar = finished ? Math.max((BOTTOM - TOP) * Number(share), 1.5) : BOTTOM - TOP;
  return html`<g>
    <title>${`Layer ${layer}: ${finished ? `${Math.round(100 * Number(share))} % kept` : "not compressed yet"}`}</title>
    <rect class=${finished ? kind : "room"} x=${x} y=${BOTTOM - bar} width=${width} height=${bar} rx="2" />
    ${layer % labelStep(total) === 0 ? html`<text x=${x + width / 2} y=${HEIGHT - 6} text-anchor="middle">${layer}</text>` : null}
  </g>`;
}

/** Layers between two labels of the axis. @param {number} total */
const labelStep = (total) => [1, 2, 5, 10, 20, 50].find((step) => total / step <= 16) || 100;

/** @param {any[]} layers @param {string} part */
function summary(layers, part) {
  const shares = layers.filter(Boolean).map((layer) => layer[part]);
  if (!shares.length) return "no layer is compressed yet.";
  const rounded = (/** @type {number} */ share) => `${Math.round(100 * share)} %`;
  return `the layers keep ${rounded(Math.min(...shares))} to ${rounded(Math.max(...shares))} of their width.`;
}
