// Runs a cell as VS Code's Jupyter extension does, through JupyterLab's own library: ADDRESS TOKEN CODE.
import { KernelManager, ServerConnection } from "npm:@jupyterlab/services@7.6.6";

const [baseUrl, token, code] = Deno.args;
const manager = new KernelManager({ serverSettings: ServerConnection.makeSettings({ baseUrl, token }) });
const kernel = await manager.startNew({ name: "python3" });
const cell = kernel.requestExecute({ code });
cell.onIOPub = ({ content }) => {
  if (content.text) console.log(`said: ${content.text.trimEnd()}`);
  if (content.ename) console.log(`${content.ename}: ${content.evalue}`);
};
await cell.done;
await kernel.shutdown();
Deno.exit(0);
