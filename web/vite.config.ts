import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

// `npm run dev` shows the page with live reload against a `tapewatch up` on its usual port.
const server = 'http://127.0.0.1:8000';

export default defineConfig({
  base: './',
  plugins: [svelte()],
  build: {
    outDir: '../src/tapewatch/serve/ui',
    emptyOutDir: true,
    target: ['chrome123', 'firefox121', 'safari17.5'],
    assetsInlineLimit: 0, // the server's content security policy allows no data: addresses
    modulePreload: { polyfill: false },
  },
  // The Host of the page is kept: the server refuses changes whose Origin is another.
  server: { proxy: { '/api': { target: server }, '/ws': { target: server, ws: true } } },
});
