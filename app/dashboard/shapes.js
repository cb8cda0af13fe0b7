// @ts-check
/** What every layer keeps, drawn as the layers finish. */

import { html } from "./vendor/htm-preact.js";

const WIDTH = 720;
const HEIGHT = 70;
const ROWS = [
  ["Attention: what is kept of the heads' widths", "attention", "attention_part"],
  ["MLP: what is kept of its width", "mlp", "mlp_part"],
];

/** @param {{ layers: any[], total: number }} props `layers` by their number */
export function Shapes({ layers, total }) {
  const done = layers.filter(Boolean).length;
  const step = WIDTH / Math.max(total, 1);
  return html`${ROWS.map(([name, kind, part]) => html`<p class="small quiet">${name}</p>
    <svg class="shapes" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img"
      aria-label=${`${done} of ${total} layers are done. ${name}: a bar is a layer.`}>
      ${Array.from({ length: total }, (_, layer) => {
        const kept = layers[layer] ? layers[layer][part] : 0;
        const says = layers[layer] ? `layer ${layer}: ${Math.round(100 * kept)} %` : `layer ${layer}: not done yet`;
        const [left, width] = [layer * step + 1, step - 2];
        return html`<g>
          <title>${says}</title>
          <rect class="room" x=${left} y="0" width=${width} height=${HEIGHT} />
          <rect class=${kind} x=${left} y=${HEIGHT * (1 - kept)} width=${width} height=${HEIGHT * kept} />
        </g>`;
      })}
    </svg>`)}`;
}
