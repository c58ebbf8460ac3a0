/** One short tone. Browsers allow it only after the person has touched the page. */

let context: AudioContext | undefined;
let lastAt = -Infinity;

export function beep(): void {
  context ??= new AudioContext();
  void context.resume();
  const start = context.currentTime;
  if (start - lastAt < 0.3) return;
  lastAt = start;
  const tone = new OscillatorNode(context, { frequency: 880 });
  const gain = new GainNode(context, { gain: 0.12 });
  gain.gain.exponentialRampToValueAtTime(0.0001, start + 0.18);
  tone.connect(gain).connect(context.destination);
  tone.start(start);
  tone.stop(start + 0.2);
}
