// The token stays in the page's address, so that a reload works. It goes out in a header, never in a link.
const TOKEN = new URLSearchParams(location.search).get("token") || "";
async function ask(path, values, method = "GET") {  // the server's reply; throws an Error in words for a person
  const options = { method, headers: { "x-review-token": TOKEN }, cache: "no-store" };
  if (method === "POST") options.body = JSON.stringify(values);
  const query = method === "GET" ? "?" + new URLSearchParams(values) : "";
  let reply;
  try {
    reply = await fetch(path + query, options);
  } catch {
    throw new Error("The server does not answer. What it has saved is on the disk; start cai review again, and open the address that it prints.");
  }
  if (reply.status === 403) throw new Error("This address is of an earlier start; open the one that cai review printed last.");
  const body = await reply.json();
  if (!reply.ok) throw new Error(body.problem);
  return body;
}
