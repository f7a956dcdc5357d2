// The words of the pages in English and Chinese. `t` returns the English words if there is no other.

const ZH = {
  "Gallery": "结果浏览", "Try a clip": "试用模型", "Review": "人工复核", "Skip to the content": "跳到正文",
  "System": "系统", "Compare with": "对比", "Sort by": "排序", "Filter": "筛选", "Search id, text, subtitle": "搜索编号、文本、字幕",
  "Label": "标签", "State": "状态", "Fault": "问题", "Inputs": "输入", "Wheel": "情绪轮", "any": "不限", "none": "无",
  "Clear": "清除", "descending": "降序", "difference": "差异", "clips": "个视频", "of": "／共", "True": "标注", "Predicted": "预测",
  "Confusion between sectors": "情绪扇区混淆矩阵", "rows: true, columns: predicted; a click filters": "行为标注，列为预测；点击可筛选",
  "Nothing matches these filters.": "没有符合条件的视频。", "Back": "返回", "Previous": "上一个", "Next": "下一个",
  "Subtitle": "字幕", "Reference": "标注描述", "Labels": "标签", "no media file": "没有媒体文件", "no prediction": "没有预测",
  "Frames": "画面", "Sound": "声音", "speech": "语音", "pause": "停顿", "pitch": "音高", "faces": "人脸",
  "not shown to the model": "模型未得到该输入", "pictures": "画面", "sound": "声音", "words": "文字",
  "visual": "视觉", "acoustic": "听觉", "lexical": "文字", "mixed": "混合", "inference": "推断", "labels": "标签",
  "Drop a video here, or choose one": "将视频拖到这里，或选择文件", "Choose a file": "选择文件", "Record": "录制", "Stop recording": "停止录制",
  "Task": "任务", "Language": "语言", "description": "描述", "both": "描述与标签", "fixed": "固定标签", "Candidates": "候选标签",
  "Ask": "提问", "Stop": "停止", "asking ...": "正在回答……", "the model is being loaded ...": "正在载入模型……",
  "Answer": "回答", "rests on (nats per token)": "依据（每词 nats）", "Point at a sentence to see what it rests on.": "将鼠标移到句子上，查看其依据。",
  "uploaded clips are temporary": "上传的视频只临时保存", "Edit the subtitle if it is wrong or missing": "字幕有误或缺失时可修改",
  "precision": "精确率", "recall": "召回率", "first better": "前者更好", "second better": "后者更好", "equal": "相同",
  "Key": "密钥", "Log in": "登录", "This studio needs a key.": "此页面需要密钥。", "p": "p",
  "cut: the answer reached its longest length": "回答达到最大长度，已截断", "Clip": "视频", "not scored": "未评分",
  "Inputs to use": "使用的输入", "recording": "正在录制", "Show the matrix": "显示矩阵", "Light and dark": "明暗",
  "Ask a model about it": "向模型提问此视频", "not on this wheel": "不在此情绪轮上", "Save": "保存", "Saved": "已保存", "Done": "已完成", "Skip": "跳过", "Keyboard": "快捷键", "Agreement": "一致性",
};

const stored = (() => { try { return localStorage.getItem("studio.lang"); } catch { return null; } })();
export const language = stored || (navigator.language?.startsWith("zh") ? "zh" : "en");
document.documentElement.lang = language;

export const t = (words) => (language === "zh" && ZH[words]) || words;

export function switchLanguage() {
  localStorage.setItem("studio.lang", language === "zh" ? "en" : "zh");
  location.reload();
}
