// The words of the pages in English and Chinese. `t` returns the English words if there is no other.

const ZH = {
  "Gallery": "结果浏览", "Try a clip": "试用模型", "Review": "人工复核", "Skip to the content": "跳到正文",
  "System": "系统", "Compare with": "对比", "Sort by": "排序", "Filter": "筛选", "Search id, text, subtitle": "搜索编号、文本、字幕",
  "Label": "标签", "State": "状态", "Fault": "问题", "Inputs": "输入", "Wheel": "情绪轮", "any": "不限", "none": "无",
  "Clear": "清除", "descending": "降序", "difference": "差异", "clips": "个视频", "of": "／", "True": "标注", "Predicted": "预测",
  "Confusion between sectors": "情绪扇区混淆矩阵", "rows: true, columns: predicted; a click filters": "行为标注，列为预测；点击可筛选",
  "Nothing matches these filters.": "没有符合条件的视频。", "Back": "返回", "Previous": "上一个", "Next": "下一个",
  "Subtitle": "字幕", "Reference": "标注描述", "Labels": "标签", "no media file": "没有媒体文件", "no prediction": "没有预测",
  "Frames": "画面", "Sound": "声音", "speech": "语音", "pause": "停顿", "pitch": "音高", "faces": "人脸",
  "not shown to the model": "模型未得到该输入", "pictures": "画面", "sound": "声音", "words": "文字",
  "visual": "视觉", "acoustic": "听觉", "lexical": "文字", "mixed": "混合", "inference": "推断", "labels": "标签",
  "Drop a video here, or choose one": "将视频拖到这里，或选择文件", "Choose a file": "选择文件", "Record": "录制", "Stop recording": "停止录制",
  "Task": "任务", "Language": "语言", "description": "描述", "both": "描述与标签", "think": "思考", "fixed": "固定标签", "Candidates": "候选标签",
  "Ask": "提问", "Stop": "停止", "asking ...": "正在回答……", "stopped": "已停止", "the model is being loaded ...": "正在载入模型……",
  "Answer": "回答", "rests on (nats per token)": "依据（每词 nats）", "Point at a sentence to see what it rests on.": "将鼠标移到句子上，查看其依据。",
  "uploaded clips are temporary": "上传的视频只临时保存", "Edit the subtitle if it is wrong or missing": "字幕有误或缺失时可修改",
  "precision": "精确率", "recall": "召回率", "first better": "前者更好", "second better": "后者更好", "equal": "相同",
  "Key": "密钥", "Log in": "登录", "This studio needs a key.": "此页面需要密钥。", "p": "p",
  "cut: the answer reached its longest length": "回答达到最大长度，已截断", "Clip": "视频", "not scored": "未评分",
  "Inputs to use": "使用的输入", "recording": "正在录制", "Show the matrix": "显示矩阵", "Light and dark": "明暗",
  "Ask a model about it": "向模型提问此视频", "not on this wheel": "不在此情绪轮上", "Save": "保存", "Saved": "已保存", "Done": "已完成", "Skip": "跳过", "Keyboard": "快捷键", "Agreement": "一致性",
  "round": "轮次", "screen": "界面", "answers": "回答数", "median time": "用时中位数", "alpha (Jaccard)": "α（Jaccard）", "alpha (MASI)": "α（MASI）",
  "overlap": "重合度", "annotator": "标注者", "done": "完成", "link": "链接", "clues": "线索", "Leave": "退出", "remove": "删除",
  "remove this clue": "删除此线索", "next field": "下一栏", "new clue of this kind": "新增同类线索", "write the time of the clip before it": "写入当前时间",
  "tick a word": "勾选词语", "write another word; ↵ adds it": "补充词语，回车加入", "back and forward half a second": "后退或前进半秒",
  "play or stop": "播放或暂停", "previous and next task (Esc leaves a field)": "上一个、下一个任务（Esc 离开输入框）",
  "All tasks are done. Thank you!": "任务已全部完成，谢谢！", "There are no tasks for you.": "没有分配给您的任务。",
  "the draft is kept in this browser": "草稿保存在本浏览器中",
  "Give each annotator their own link. Opening one here makes this browser that annotator's.": "请把各自的链接发给标注者；在此打开链接后，本浏览器即作为该标注者使用。",
  "Write the confirmed records": "写出已确认的记录", "clips have passed both rounds": "个视频已通过两轮",
  "descriptions were written before the review": "条描述写于复核之前", "Face": "面部动作", "inner brows raised": "眉头抬起", "inner brows lowered": "眉头下压",
  "outer brows raised": "眉尾抬起", "outer brows lowered": "眉尾下压", "eyes narrowed": "眼睛眯起", "mouth corners raised": "嘴角上扬",
  "mouth widened": "嘴角拉开", "lips apart": "双唇分开", "lips pressed": "双唇紧闭", "jaw lowered": "下颌张开", "gaze right": "视线向右", "gaze left": "视线向左",
  "gaze down": "视线向下", "gaze up": "视线向上", "head right": "头转向右", "head left": "头转向左", "head down": "低头", "head up": "抬头",
  "head tilted right": "头向右歪", "head tilted left": "头向左歪", "blink": "眨眼", "eyes closed": "闭眼", "Runs": "训练记录", "loss": "损失", "step": "步数",
  "status": "状态", "run": "运行", "kind": "类型", "data": "数据", "model": "模型", "score": "得分", "started": "开始时间", "Samples over steps": "各步的样例",
  "Rollouts": "采样回答", "reward": "奖励", "rows of the references cannot be used": "行标注无法使用", "recording needs https or 127.0.0.1": "录制需要 https 或 127.0.0.1",
  "There is nothing to show: name a run, predictions= or a review.": "没有可显示的内容：请指定训练记录、predictions= 或人工复核。", "Labels and lengths": "标签数与长度", "Labels of a clip": "每个视频的标签数", "Characters of an explanation": "描述字符数", "from": "自", "Action units": "动作单元", "intensity": "强度", "probability": "概率", "at most": "最高", "hardly active": "几乎无动作", "Listen": "识别语音", "listening ...": "正在识别……", "proposed by": "识别模型：", "correct it if it is wrong": "如有误请修改", "nothing was heard": "没有听到语音", "advantage": "优势", "f": "F 值", "n_true": "标注标签数", "n_predicted": "预测标签数", "n_characters": "描述长度", "n_tokens": "词元数",
  "clue_precision": "线索精确率", "clue_recall": "线索召回率", "absent": "提到未提供的输入", "unsupported": "标签无依据", "contradicting": "描述与标签矛盾", "id": "编号",
  "audio": "声音", "frames": "画面", "motion": "动态", "face": "面部", "face_motion": "面部动态",
  "running": "进行中", "finished": "已结束", "failed": "失败", "unfinished": "未完成", "unreadable": "无法读取",
  "train": "训练", "eval": "评估", "benchmark": "基准测试", "annotate": "标注", "prefer": "偏好比较", "zeroshot": "零样本", "learning_rate": "学习率", "eval_score": "验证得分",
  "scored": "已评分", "missing": "缺预测", "unparsed": "无标签", "right": "全对", "wrong": "全错",
};

const stored = (() => { try { return localStorage.getItem("studio.lang"); } catch { return null; } })();
export const language = stored || (navigator.language?.startsWith("zh") ? "zh" : "en");
document.documentElement.lang = language;

export const t = (words) => (language === "zh" && ZH[words]) || words;

export function switchLanguage() {
  localStorage.setItem("studio.lang", language === "zh" ? "en" : "zh");
  location.reload();
}
