export async function tryPage() {}
