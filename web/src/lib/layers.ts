/** What lies over the page, the topmost last: Escape closes one at a time. */

const layers: (() => void)[] = [];

/** Puts one on top; the returned function takes it away. */
export function layer(close: () => void): () => void {
  layers.push(close);
  return () => void layers.splice(layers.lastIndexOf(close), 1);
}

export function onEscape(event: KeyboardEvent): void {
  if (event.key === 'Escape' && !event.defaultPrevented) layers.at(-1)?.();
}
