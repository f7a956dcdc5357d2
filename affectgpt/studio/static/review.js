export async function reviewPage() {}
