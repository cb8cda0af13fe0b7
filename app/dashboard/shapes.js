// @ts-check
/** Remaining widths of every layer, drawn as the layers finish. */

import { html } from "./vendor/htm-preact.js";

const WIDTH = 720;
const HEIGHT = 70;
const ROWS = [
  ["Attention: remaining head width", "attention", "attention_part"],
  ["MLP: remaining width", "mlp", "mlp_part"],
];

/** @param {{ layers: any[], total: number }} props `layers` indexed by layer number */
export function Shapes({ layers, total }) {
  const done = layers.filter(Boolean).length;
  const step = WIDTH / Math.max(total, 1);
  return html`${ROWS.map(([name, kind, part]) => html`<p class="small quiet">${name}</p>
    <svg class="shapes" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img"
      aria-label=${`${done} of ${total} layers done. ${name}, one bar per layer.`}>
      ${Array.from({ length: total }, (_, layer) => {
        const kept = layers[layer] ? layers[layer][part] : 0;
        const label = layers[layer] ? `layer ${layer}: ${Math.round(100 * kept)} %` : `layer ${layer}: pending`;
        const [left, width] = [layer * step + 1, step - 2];
        return html`<g>
          <title>${label}</title>
          <rect class="room" x=${left} y="0" width=${width} height=${HEIGHT} />
          <rect class=${kind} x=${left} y=${HEIGHT * (1 - kept)} width=${width} height=${HEIGHT * kept} />
        </g>`;
      })}
    </svg>`)}`;
}
