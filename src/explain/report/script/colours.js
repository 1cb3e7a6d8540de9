// cividis (Nunez et al. 2018) for sizes, PuOr (ColorBrewer) for signs, Okabe-Ito for roles.
const stops = (text) => text.split(" ").map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
const CIVIDIS = stops("#00224e #123570 #3b496c #575d6d #707173 #8a8678 #a59c74 #c3b369 #fee838");
const PUOR = stops("#542788 #8073ac #b2abd2 #d8daeb #f7f7f7 #fee0b6 #fdb863 #e08214 #b35806");
const css = (rgb) => `rgb(${rgb.join(", ")})`;
function between(colours, place) {
  const at = Math.min(1, Math.max(0, place)) * (colours.length - 1), low = Math.min(colours.length - 2, Math.floor(at));
  return colours[low].map((part, n) => Math.round(part + (at - low) * (colours[low + 1][n] - part)));
}
/** Black or white, whichever reads better (contrast of WCAG). */
function ink(rgb) {
  const [r, g, b] = rgb.map((part) => (part <= 10 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  return light / 0.05 > 1.05 / light ? "#000" : "#fff";
}
function scaleOf(values, sign) {
  const found = values.filter(has).map(Math.abs);
  if (!found.length) return null;
  const top = Math.max(...found) || 1;
  return { sign, low: sign ? -top : 0, top, rgb: (v) => (sign ? between(PUOR, (v / top + 1) / 2) : between(CIVIDIS, v / top)) };
}
const scaleBar = (scale, name) => h("div.scale", number(scale.low, scale.sign),
  h("i", { "aria-hidden": "true", style: { background: `linear-gradient(to right, ${(scale.sign ? PUOR : CIVIDIS).map(css).join(", ")})` } }),
  number(scale.top, scale.sign), h("span.quiet", name));
const painted = (scale, value) => (scale && has(value) ? { "background-color": css(scale.rgb(value)), color: ink(scale.rgb(value)) } : {});
